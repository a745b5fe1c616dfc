//! What connections cost between what they do: places in the queue, entries in the wheel of timers.

use tcpcopy_common::tcp_flags::{ACK, PSH};

use super::harness::{Client, Lab};

#[test]
fn a_connection_has_one_place_in_the_queue_however_much_comes() {
    let mut lab = Lab::new();
    let mut clients = [40_000, 40_001].map(Client::new);
    clients.iter_mut().for_each(|client| client.knock(&mut lab));
    for mut client in clients {
        for _ in 0..5 {
            let segment = client.segment(&lab, ACK | PSH, b"x");
            lab.hand(&segment);
            client.seq = client.seq.wrapping_add(1);
        }
    }
    assert_eq!(lab.engine.ready.len(), 2);
    lab.settle();
    assert_eq!((lab.engine.ready.len(), lab.sent.len()), (0, 2));
}

#[test]
fn a_connection_that_ended_in_the_queue_leaves_its_place_to_the_next() {
    let mut lab = Lab::new();
    let establish = |lab: &mut Lab, port| {
        let mut client = Client::new(port);
        client.knock(lab);
        let end = client.segment(lab, ACK, &[]);
        lab.hand(&end);
    };
    establish(&mut lab, 40_000);
    lab.engine.handle_shutdown(lab.now);
    // Before the queue is looked at, and after.
    Client::new(40_001).syn(&mut lab);
    assert_eq!(lab.sent.len(), 1);
    establish(&mut lab, 40_002);
    lab.engine.handle_shutdown(lab.now);
    lab.settle();
    let sent = lab.sent.len();
    Client::new(40_003).syn(&mut lab);
    assert_eq!(lab.sent.len(), sent + 1);
}

#[test]
fn requests_after_rests_do_not_leave_an_entry_each_in_the_wheel() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    for n in 0..50 {
        client.send(&mut lab, if n == 0 { 0 } else { 100 }, b"x\n");
        lab.run_ms(1000);
        assert!(lab.engine.timers.len() <= 4, "{} after {n}", lab.engine.timers.len());
    }
}
