//! Two VLANs of a trunk that use the same addresses: connections with equal four-tuples at the same time.

use super::harness::{Client, Lab};

#[test]
fn connections_with_equal_four_tuples_do_not_mix() {
    let mut lab = Lab::new();
    let mut first = Client::new(40_000);
    let mut second = Client::new(40_000);
    (second.seq, second.ack) = (first.seq.wrapping_add(1 << 30), first.ack.wrapping_add(1 << 31));
    first.syn(&mut lab);
    first.send(&mut lab, 0, b"first\n");
    lab.run_ms(50);
    second.syn(&mut lab);
    for turn in 0..20 {
        second.send(&mut lab, if turn == 0 { 0 } else { 50 }, b"second\n");
        first.send(&mut lab, 50, b"first\n");
        lab.run_ms(5);
    }
    second.fin(&mut lab, 50);
    lab.run_ms(1_000);
    let mut received: Vec<String> = lab
        .target
        .past
        .iter()
        .map(|(_, conn)| conn)
        .chain(lab.target.conns.values())
        .map(|conn| String::from_utf8_lossy(&conn.received).into_owned())
        .collect();
    received.sort();
    assert_eq!(received, ["first\n".to_owned(), "second\n".repeat(20)]);
    let stats = lab.engine.stats();
    let refused = stats.refused.bad_acknowledgement + stats.refused.out_of_window;
    assert_eq!((stats.port_reuses, refused, stats.refused.refused_bytes), (1, 20, 120));
}
