//! When nothing more is sent to a target, and when all goes on: in virtual time, over lossy and slow ways.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tcpcopy_common::{
    flow::IpAddress,
    mark::PROBES,
    response::{ResponseHeader, kind, option},
    tcp_flags::{RST, SYN},
};

use super::{
    harness::{CREDENTIALS, Client, Lab, MS, TARGET, config},
    target::{Packet, Way},
};
use crate::{
    config::{Config, Credentials},
    engine::{Fault, FuseEvent},
    stats::Reason,
};

const OWN: [u8; 4] = [10, 0, 0, 2];

/// A laboratory with a fuse, whose target is reached in this way.
fn lab(way: Way) -> Lab {
    let mut lab = Lab::with(Config { probe_from: vec![IpAddr::from(OWN)], ..config() });
    lab.target.way = way;
    lab.settle();
    lab
}

/// The same, of which the way is proved.
fn proved(way: Way) -> Lab {
    let mut lab = lab(Way::Clear);
    run(&mut lab, 10);
    assert_eq!(events(&mut lab), [None]);
    lab.target.way = way;
    lab
}

/// Lets time pass, with a word of the channel every second.
fn run(lab: &mut Lab, ms: u64) {
    let end = lab.now.0 + ms * MS;
    while lab.now.0 < end {
        lab.engine.handle_heard(lab.now, TARGET);
        lab.run_until(end.min(lab.now.0 + 1000 * MS));
    }
}

fn events(lab: &mut Lab) -> Vec<Option<Fault>> {
    std::iter::from_fn(|| lab.engine.poll_fuse_event()).map(|event| event.fault).collect()
}

fn is_probe(packet: &Packet) -> bool {
    packet.options.syn.is_some_and(|syn| syn.mark.stamp & PROBES != 0)
}

fn is_own(packet: &Packet) -> bool {
    packet.flow.client == IpAddress::from_v4(OWN)
}

/// What has gone out since `from` that somebody could answer to a client.
fn answerable(lab: &Lab, from: usize) -> usize {
    lab.sent[from..].iter().filter(|packet| !is_own(packet) && !packet.flags.contains(RST)).count()
}

fn visit(lab: &mut Lab, port: u16) -> Client {
    let mut client = Client::new(port);
    client.syn(lab);
    client.send(lab, 0, b"one\n");
    client
}

/// Runs until a fuse says something, for at most two seconds from now; returns what.
fn blown(lab: &mut Lab) -> Option<Fault> {
    for _ in 0..40 {
        run(lab, 50);
        if let [fault] = events(lab)[..] {
            return fault;
        }
    }
    panic!("nothing is said within two seconds");
}

#[test]
fn nothing_of_a_client_goes_before_a_probe_is_reported() {
    let mut lab = lab(Way::Elsewhere);
    visit(&mut lab, 40_000);
    assert_eq!(blown(&mut lab), Some(Fault::ProbeUnseen));
    assert_eq!(lab.engine.stats().stopped, 1);
    run(&mut lab, 1000);
    assert!(lab.sent.iter().all(|packet| is_own(packet) && is_probe(packet)));
    assert!(lab.leaked.iter().all(|response| response.flow.client == IpAddress::from_v4(OWN)));
    assert!(!lab.leaked.is_empty(), "this host is answered");
    // The address moves to the right host.
    lab.target.conns.clear();
    lab.target.way = Way::Clear;
    run(&mut lab, 2050);
    assert_eq!((events(&mut lab), lab.engine.stats().stopped), (vec![None], 0));
    assert_eq!(lab.lines(), ["one\n"], "it has waited");
    assert_eq!(lab.engine.stats().probe_unseen, 1);
}

#[test]
fn what_waits_for_the_proof_in_vain_is_counted_as_such() {
    let mut lab = lab(Way::Elsewhere);
    visit(&mut lab, 40_000);
    run(&mut lab, 6000);
    assert_eq!(lab.engine.stats().sessions.aborted.get(Reason::TargetStopped), 1);
}

#[test]
fn syns_that_the_programs_do_not_see_stop_it_within_two_seconds() {
    let mut lab = proved(Way::OnlyFrom(IpAddress::from_v4(OWN)));
    visit(&mut lab, 40_000);
    assert_eq!(blown(&mut lab), Some(Fault::SynsUnseen));
    stays_stopped(&mut lab);
    assert_eq!(lab.engine.stats().syns_unseen, 1);
}

/// Nothing goes that could be answered, however many clients come, until the channel comes up anew.
fn stays_stopped(lab: &mut Lab) {
    assert_eq!(lab.engine.stats().stopped, 1);
    let sent = lab.sent.len();
    for port in 0..30 {
        visit(lab, 41_000 + port);
        run(lab, 1000);
    }
    assert_eq!((answerable(lab, sent), events(lab)), (0, vec![]));
    lab.target.way = Way::Clear;
    lab.engine.handle_channel_down(lab.now, TARGET);
    lab.engine.handle_channel_up(lab.now, TARGET, CREDENTIALS);
    visit(lab, 45_000);
    run(lab, 1000);
    assert_eq!((events(lab), lab.engine.stats().stopped), (vec![None], 0));
    assert!(lab.target.accepted > 0);
}

#[test]
fn syns_that_nothing_answers_stop_it_within_two_seconds() {
    for (way, fault) in [(Way::Dropped(0), Fault::Unanswered), (Way::Astray, Fault::AnswersUnseen)] {
        // Before the first response, and later.
        for responses in [false, true] {
            let mut lab = proved(Way::Clear);
            if responses {
                visit(&mut lab, 39_000);
                run(&mut lab, 10_000);
            }
            lab.target.way = way;
            visit(&mut lab, 40_000);
            assert_eq!(blown(&mut lab), Some(fault));
            let resets = lab.sent.iter().filter(|packet| packet.flags.contains(RST)).count();
            let expected = if fault == Fault::AnswersUnseen { 1 + usize::from(responses) } else { 0 };
            assert_eq!(resets, expected, "what goes astray is ended: {responses}");
            stays_stopped(&mut lab);
        }
    }
}

/// Not even this host's own probes come to where `intercept` looks any more.
#[test]
fn a_way_that_leads_elsewhere_after_a_while_stops_it_within_two_seconds() {
    // Before the first response, and later.
    for responses in [false, true] {
        let mut lab = proved(Way::Clear);
        if responses {
            visit(&mut lab, 39_000);
            run(&mut lab, 10_000);
        }
        lab.target.way = Way::Elsewhere;
        visit(&mut lab, 40_000);
        assert_eq!((blown(&mut lab), lab.engine.stats().stopped), (Some(Fault::ProbeUnseen), 1), "{responses}");
    }
}

/// Nothing can be proved then, and what is reported of SYNs is believed after a while.
#[test]
fn without_an_address_of_its_own_a_target_that_answers_nothing_is_stopped_all_the_same() {
    for (way, fault) in [(Way::Dropped(0), Fault::Unanswered), (Way::Astray, Fault::AnswersUnseen)] {
        for nowhere in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
            let mut lab = Lab::with(Config { probe_from: vec![nowhere], ..config() });
            lab.settle();
            run(&mut lab, 1000);
            assert_eq!((events(&mut lab), lab.engine.stats().stopped), (vec![None], 0), "{nowhere}");
            lab.target.way = way;
            visit(&mut lab, 40_000);
            assert_eq!((blown(&mut lab), lab.engine.stats().stopped), (Some(fault), 1), "{nowhere}");
            let nobody = [IpAddress::UNSPECIFIED, IpAddress::from_v4([0; 4])];
            assert!(!lab.sent.iter().any(|packet| nobody.contains(&packet.flow.client)), "{nowhere}");
        }
    }
}

/// What a response says that was late: all is well.
#[test]
fn a_response_after_all_lets_it_go_on() {
    let mut lab = proved(Way::Dropped(0));
    visit(&mut lab, 40_000);
    assert_eq!(blown(&mut lab), Some(Fault::Unanswered));
    lab.target.way = Way::Clear;
    let (flow, isn) = lab.target.syns[0];
    let response = ResponseHeader {
        flow,
        seq: [0, 0, 0, 9],
        ack: isn.wrapping_add(1).to_be_bytes(),
        kind: kind::ICMP_ERROR,
        instance: CREDENTIALS.instance,
        ..bytemuck::Zeroable::zeroed()
    };
    lab.report(&response);
    assert_eq!((events(&mut lab), lab.engine.stats().stopped), (vec![None], 0));
    run(&mut lab, 5000);
    assert_eq!(lab.lines(), ["one\n"]);
}

#[test]
fn a_service_that_accepts_nothing_does_not_stop_it() {
    explained(option::SERVICE_FULL);
}

#[test]
fn a_client_whose_neighbour_is_silent_does_not_stop_it() {
    explained(option::ANSWERED | option::NEIGHBOUR_SILENT);
}

/// No SYN is answered for a while, and `intercept` knows why.
fn explained(options: u8) {
    let mut lab = proved(Way::Clear);
    visit(&mut lab, 39_000);
    run(&mut lab, 100);
    lab.target.way = Way::Dropped(options);
    for port in 0..40 {
        visit(&mut lab, 40_000 + port);
        run(&mut lab, 500);
    }
    assert_eq!((events(&mut lab), lab.engine.stats().stopped), (vec![], 0));
    lab.target.way = Way::Clear;
    run(&mut lab, 40_000);
    assert_eq!((lab.lines().len(), events(&mut lab)), (41, vec![]), "all have waited");
}

#[test]
fn a_service_that_is_down_does_not_stop_it() {
    let mut lab = proved(Way::Clear);
    lab.target.listening = false;
    for port in 0..40 {
        visit(&mut lab, 40_000 + port);
        run(&mut lab, 500);
    }
    assert_eq!((events(&mut lab), lab.engine.stats().stopped), (vec![], 0));
    assert_eq!(lab.engine.stats().sessions.aborted.get(Reason::TargetRefused), 40);
    assert_eq!(answerable(&lab, 0), 40, "no probes, no repetitions");
}

#[test]
fn a_full_session_map_does_not_stop_it() {
    let mut lab = proved(Way::Clear);
    lab.target.refuse_syns = (u32::MAX, kind::MAP_FULL);
    for port in 0..40 {
        visit(&mut lab, 40_000 + port);
        run(&mut lab, 500);
    }
    assert_eq!((events(&mut lab), lab.engine.stats().stopped), (vec![], 0));
}

/// A tenth of all packets is lost in each direction, reports among them, and the way is up to 800 ms long. A wrong stop
/// needs seven packets of one client's in a row to be lost; none of these runs, which are always the same, has one.
#[test]
fn a_slow_and_lossy_way_does_not_stop_it() {
    for seed in 0..60 {
        let mut lab = lab(Way::Clear);
        lab.audits = false;
        lab.seed(seed);
        lab.weather.lose = 100;
        lab.delay = (seed % 9) * 50 * MS + 50_000;
        for port in 0..60 {
            visit(&mut lab, 40_000 + port);
            run(&mut lab, 200 + seed * 31 % 1500);
        }
        assert_eq!(events(&mut lab), [None], "seed {seed}");
        assert_eq!(lab.engine.stats().stopped, 0);
    }
}

/// Nothing is heard for three seconds, in which all packets are lost; then all that was reported comes at once.
#[test]
fn a_network_that_stands_still_does_not_stop_it() {
    for still in [1200, 1900, 2500, 4000, 9000] {
        let mut lab = proved(Way::Clear);
        for round in 0..5 {
            let port = 40_000 + 10 * round;
            lab.weather.lose = 1000;
            visit(&mut lab, port);
            visit(&mut lab, port + 1);
            lab.run_ms(still);
            lab.weather.lose = 0;
            run(&mut lab, 20_000);
        }
        assert_eq!((events(&mut lab), lab.engine.stats().stopped), (vec![], 0), "{still} ms");
        assert_eq!(lab.lines().len(), 10, "{still} ms");
    }
}

/// `intercept` was slow, and its ring full: the answers were swallowed, and their reports are lost.
#[test]
fn lost_reports_do_not_stop_it() {
    let mut lab = proved(Way::OnlyFrom(IpAddress::from_v4(OWN)));
    for port in 0..10 {
        visit(&mut lab, 40_000 + port);
        lab.target.reports_lost += 1;
        run(&mut lab, 400);
    }
    assert_eq!(events(&mut lab), []);
}

/// A SYN that nobody waits for any more costs nothing.
#[test]
fn a_silence_that_nobody_breaks_is_not_looked_into_for_ever() {
    let mut lab = proved(Way::Dropped(0));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(100);
    client.rst(&mut lab, 0);
    lab.weather.lose = 1000;
    // The SYN is repeated for a minute, and each time some probes go.
    lab.run_ms(200_000);
    let sent = lab.sent.len();
    assert!(sent < 400, "{sent}");
    lab.run_ms(600_000);
    assert_eq!(lab.sent.len(), sent);
    assert_eq!(lab.engine.poll_timeout(), None);
}

#[test]
fn only_a_few_sessions_are_opened_before_the_first_response() {
    let mut lab = proved(Way::Clear);
    lab.weather.lose = 1000;
    for port in 0..100 {
        visit(&mut lab, 40_000 + port);
    }
    assert_eq!(answerable(&lab, 0), 16);
    lab.weather.lose = 0;
    run(&mut lab, 3000);
    assert_eq!(lab.lines().len(), 100, "the first response lets the others go");
}

#[test]
fn what_another_engine_has_found_out_is_followed() {
    let address = config().rules[0].address;
    let event = |fault| FuseEvent { target: address, fault };
    let mut lab = proved(Way::Clear);
    lab.engine.handle_fuse_event(lab.now, event(Some(Fault::ProbeUnseen)));
    assert_eq!(lab.engine.stats().stopped, 0, "its own way is proved");
    lab.engine.handle_fuse_event(lab.now, event(Some(Fault::SynsUnseen)));
    visit(&mut lab, 40_000);
    run(&mut lab, 1000);
    assert_eq!((lab.engine.stats().stopped, answerable(&lab, 0), events(&mut lab)), (1, 0, vec![]));
    lab.engine.handle_fuse_event(lab.now, event(None));
    lab.settle();
    run(&mut lab, 1000);
    assert_eq!((lab.lines().len(), events(&mut lab)), (1, vec![]));
    // Whoever has just had a response knows better.
    visit(&mut lab, 40_001);
    run(&mut lab, 10);
    lab.engine.handle_fuse_event(lab.now, event(Some(Fault::SynsUnseen)));
    assert_eq!((lab.engine.stats().stopped, events(&mut lab)), (0, vec![None]));
}

#[test]
fn another_instance_has_to_prove_the_way_again() {
    let mut lab = proved(Way::Clear);
    visit(&mut lab, 40_000);
    run(&mut lab, 10);
    lab.engine.handle_channel_down(lab.now, TARGET);
    lab.target.way = Way::Elsewhere;
    lab.target.sessions.clear();
    lab.target.instance += 1;
    let credentials = Credentials { instance: lab.target.instance, ..CREDENTIALS };
    let sent = lab.sent.len();
    lab.engine.handle_channel_up(lab.now, TARGET, credentials);
    visit(&mut lab, 40_001);
    assert_eq!(blown(&mut lab), Some(Fault::ProbeUnseen));
    assert!(lab.sent[sent..].iter().all(is_probe), "neither the orphan's nor the client's SYN");
}

/// A probe's report that is not of a probe that was sent proves nothing.
#[test]
fn a_report_of_an_old_probe_proves_nothing() {
    let mut lab = lab(Way::Clear);
    lab.weather.lose = 1000;
    run(&mut lab, 1000);
    let probe = lab.sent[0].clone();
    assert!(is_probe(&probe) && probe.flags == SYN);
    lab.engine.handle_channel_down(lab.now, TARGET);
    lab.engine.handle_channel_up(lab.now, TARGET, CREDENTIALS);
    let report = |seq: u32| ResponseHeader {
        flow: probe.flow,
        seq: seq.to_be_bytes(),
        kind: kind::PROBED,
        instance: CREDENTIALS.instance,
        ..bytemuck::Zeroable::zeroed()
    };
    for seq in [probe.seq, probe.seq.wrapping_add(1 << 20)] {
        lab.report(&report(seq));
        assert_eq!(events(&mut lab), [], "{seq}");
    }
    let now = (lab.now.0 >> 20) as u32;
    lab.report(&report(now));
    assert_eq!(events(&mut lab), [None]);
}

/// What a killed `intercept` has left is unknown to its successor until it was probed: not a moment longer than need be.
#[test]
fn orphans_are_probed_as_soon_as_the_way_is_proved() {
    let mut lab = proved(Way::Clear);
    visit(&mut lab, 40_000);
    run(&mut lab, 10);
    lab.restart_intercept(500);
    run(&mut lab, 10);
    let stats = lab.engine.stats();
    assert_eq!((stats.orphans, stats.orphans_settled, lab.target.conns.len()), (1, 1, 0));
}
