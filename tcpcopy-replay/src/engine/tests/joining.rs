//! Connections of protocols that cannot be joined in the middle.

use super::{
    harness::{Client, Lab},
    target::{Act, App, lines, lines_then_close},
};
use crate::stats::Reason;

/// A server that ends a connection unless it begins with a login; the number of octets is its complaint.
fn with_login(complaint: u32, end: End) -> App {
    let mut answers = lines(50);
    Box::new(move |input| match input {
        Some((octets, _)) if !octets.starts_with(b"login") => refusal(complaint, end),
        input => answers(input),
    })
}

fn refusal(complaint: u32, end: End) -> Vec<Act> {
    if complaint > 0 { vec![Act::Write(0, complaint), end(100_000)] } else { vec![end(100_000)] }
}

/// Makes the end of a connection, after so many nanoseconds.
type End = fn(u64) -> Act;

/// Ends, and octets that are said before.
const ENDS: [(u32, End); 4] = [(0, Act::Close), (0, Act::Reset), (60, Act::Close), (60, Act::Reset)];

fn talk(lab: &mut Lab, clients: &mut [Client], words: &[u8]) {
    for client in &mut *clients {
        client.send(lab, 50, words);
        lab.run_ms(5);
    }
}

/// As of PostgreSQL with passwords: each request of each connection was a session, and three connections at the target.
#[test]
fn connections_that_lack_their_login_are_no_storm() {
    for (complaint, end) in ENDS {
        let mut lab = Lab::new();
        lab.target.new_app = Box::new(move |_| with_login(complaint, end));
        let mut old: Vec<Client> = (0..7).map(|n| Client::new(40_000 + n)).collect();
        // The first request of each tells where the second begins, at which it joins.
        talk(&mut lab, &mut old, b"query\n");
        for client in &mut old {
            talk(&mut lab, std::slice::from_mut(client), b"query\n");
            lab.run_ms(1_500);
        }
        for _ in 0..100 {
            talk(&mut lab, &mut old, b"query\n");
        }
        let stats = lab.engine.stats();
        // An answer is only known for a complaint when the live client goes on, so that each may be tried once.
        let tried = if complaint == 0 { 3 } else { 7 };
        assert_eq!((stats.joined, lab.target.accepted), (tried, tried as usize), "{complaint}");
        assert_eq!(stats.sessions.aborted.get(Reason::Unjoinable), tried);
        let told = std::iter::from_fn(|| lab.engine.poll_unjoinable_rule()).count();
        assert_eq!(told, 1);
        // What begins with its login is replayed as ever.
        let mut new = Client::new(41_000);
        new.syn(&mut lab);
        new.send(&mut lab, 0, b"login\n");
        talk(&mut lab, std::slice::from_mut(&mut new), b"query\n");
        new.fin(&mut lab, 50);
        old.iter_mut().for_each(|client| client.fin(&mut lab, 50));
        lab.run_ms(1_000);
        let all = lab.target.past.iter().map(|(_, conn)| conn).chain(lab.target.conns.values());
        let whole: Vec<_> = all.filter(|conn| conn.received.starts_with(b"login")).map(|conn| &conn.received).collect();
        assert_eq!(whole, [b"login\nquery\n"]);
        lab.assert_done();
    }
}

/// Not even if others of the service can be joined.
#[test]
fn a_connection_that_was_refused_stays_out() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|n| if n == 1 { with_login(0, Act::Close) } else { lines(50) });
    let mut clients = [40_000, 40_001, 40_002].map(Client::new);
    for _ in 0..20 {
        talk(&mut lab, &mut clients, b"query\n");
    }
    assert_eq!(lab.target.accepted, 3);
    lab.run_ms(230_000);
    talk(&mut lab, &mut clients[1..2], b"query\n");
    talk(&mut lab, &mut clients[1..2], b"query\n");
    assert_eq!(lab.target.accepted, 3, "it is still known");
    assert_eq!(lab.engine.poll_unjoinable_rule(), None);
}

#[test]
fn refusals_count_in_a_row() {
    let mut lab = Lab::new();
    // Every third is accepted.
    lab.target.new_app = Box::new(|n| if n % 3 == 2 { lines(50) } else { with_login(0, Act::Close) });
    for n in 0..12 {
        let mut client = [Client::new(40_000 + n)];
        (0..5).for_each(|_| talk(&mut lab, &mut client, b"query\n"));
    }
    assert_eq!((lab.target.accepted, lab.engine.poll_unjoinable_rule()), (12, None));
}

/// The live server goes on with a login that the target refuses.
#[test]
fn a_refused_login_is_not_dialled_again_and_again() {
    for (complaint, end) in ENDS {
        let mut lab = Lab::new();
        lab.target.new_app = Box::new(move |_| {
            let mut other = with_login(complaint, end);
            // The login is answered with a challenge, and the reply to that refused.
            Box::new(move |input| match input {
                Some((b"login\n", _)) => vec![Act::Write(0, 50)],
                Some((octets, _)) if octets.starts_with(b"login\n") => refusal(complaint, end),
                input => other(input),
            })
        });
        for n in 0..20 {
            let mut client = [Client::new(40_000 + n)];
            client[0].syn(&mut lab);
            client[0].send(&mut lab, 0, b"login\n");
            lab.run_ms(5);
            (0..20).for_each(|_| talk(&mut lab, &mut client, b"reply\n"));
        }
        assert_eq!(lab.target.accepted, 20 + 3, "{complaint}");
        assert!(lab.engine.poll_unjoinable_rule().is_some());
    }
}

/// A target may close at its own keep-alive limit, however low.
#[test]
fn requests_that_say_all_that_is_needed_are_joined_however_often_the_target_closes() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| lines_then_close(50, 1));
    let mut clients = [40_000, 40_001, 40_002, 40_003].map(Client::new);
    for _ in 0..10 {
        talk(&mut lab, &mut clients, b"GET / HTTP/1.1\n");
    }
    // All but the first of each connection, which tells where the second begins.
    assert_eq!(lab.target.accepted, 36);
    assert_eq!(lab.lines().len(), 36);
    assert_eq!(lab.engine.poll_unjoinable_rule(), None);
}

/// It takes one request on each connection, but answers as the live server does.
#[test]
fn a_target_that_answers_and_closes_refuses_nothing() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| lines_then_close(50, 1));
    let mut clients = [40_000, 40_001, 40_002, 40_003].map(Client::new);
    for _ in 0..10 {
        talk(&mut lab, &mut clients, b"query\n");
    }
    assert_eq!((lab.target.accepted, lab.engine.poll_unjoinable_rule()), (36, None));
}

/// Its refusals happen to be as long as the live server's answers.
#[test]
fn a_protocol_with_a_memory_is_known_by_its_requests() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| lines_then_close(50, 1));
    let mut clients = [40_000, 40_001, 40_002, 40_003].map(Client::new);
    for _ in 0..10 {
        talk(&mut lab, &mut clients, b"\0\0\x02\x01\x04\0\0\0\x05a\n");
    }
    assert_eq!(lab.target.accepted, 4);
    assert!(lab.engine.poll_unjoinable_rule().is_some());
}

/// The rule has given up joining, but not these.
#[test]
fn requests_that_say_all_that_is_needed_are_joined_beside_others_that_are_not() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| {
        let mut answers = lines(50);
        Box::new(move |input| match input {
            Some((octets, _)) if !octets.starts_with(b"GET") => vec![Act::Close(0)],
            input => answers(input),
        })
    });
    let mut frames: Vec<Client> = (0..5).map(|n| Client::new(40_000 + n)).collect();
    (0..5).for_each(|_| talk(&mut lab, &mut frames, b"frame\n"));
    assert!(lab.engine.poll_unjoinable_rule().is_some());
    let accepted = lab.target.accepted;
    let mut plain = [Client::new(41_000)];
    (0..5).for_each(|_| talk(&mut lab, &mut plain, b"GET / HTTP/1.1\n"));
    assert_eq!(lab.target.accepted, accepted + 1);
    // One that has stayed out as well.
    (0..5).for_each(|_| talk(&mut lab, &mut frames[..1], b"GET / HTTP/1.1\n"));
    assert_eq!(lab.target.accepted, accepted + 2);
}

/// Then it is not what was said that it cannot bear.
#[test]
fn a_target_that_closes_an_idle_connection_does_not_refuse_it() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| {
        Box::new(|input| match input {
            Some(_) => vec![Act::Write(0, 50), Act::Close(1_200_000_000)],
            None => Vec::new(),
        })
    });
    let mut clients: Vec<Client> = (0..5).map(|n| Client::new(40_000 + n)).collect();
    for _ in 0..4 {
        talk(&mut lab, &mut clients, b"query\n");
        lab.run_ms(2_000);
    }
    assert_eq!((lab.target.accepted, lab.engine.poll_unjoinable_rule()), (15, None));
}

/// Both servers close: the client has said goodbye.
#[test]
fn a_goodbye_is_no_refusal() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| lines_then_close(50, 1));
    for n in 0..10 {
        let mut client = [Client::new(40_000 + n)];
        talk(&mut lab, &mut client, b"query\n");
        talk(&mut lab, &mut client, b"quit\n");
        client[0].fin(&mut lab, 51);
        lab.run_ms(50);
    }
    assert_eq!((lab.target.accepted, lab.engine.poll_unjoinable_rule()), (10, None));
    lab.assert_done();
}
