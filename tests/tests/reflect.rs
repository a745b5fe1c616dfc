//! `intercept --ack reflect`: large answers are acknowledged at the target, and cost the source no packets.

use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, PATIENCE, eventually,
    http::{Limit, Load, Method, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};

/// A figure of a host's TCP: of the line pair that begins with `prefix` in a file of /proc/net.
fn tcp_figure(host: &Host, file: &str, prefix: &str, name: &str) -> u64 {
    let text = host.output(&format!("cat /proc/net/{file}")).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with(prefix)).map(str::split_ascii_whitespace);
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    names.zip(values).find(|(n, _)| *n == name).unwrap().1.parse().unwrap()
}

/// Segments that a host has sent again; but for those that probe for the loss of a tail, after two round trips, which
/// are microseconds here: the tail is acknowledged by the source, whose worker may have to wait for a processor.
fn retransmitted(host: &Host) -> u64 {
    tcp_figure(host, "snmp", "Tcp:", "RetransSegs").saturating_sub(tcp_figure(
        host,
        "netstat",
        "TcpExt:",
        "TCPLossProbes",
    ))
}

#[test]
fn large_answers_are_acknowledged_where_they_are_made() {
    let _guard = laboratory!();
    for attach in ["tcx", "clsact"] {
        let lab = Lab::bridge().unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let intercept = ["--attach", attach, "--ack", "reflect"].map(str::to_owned).to_vec();
        let mirror = Mirror::start(&lab, MirrorOptions { intercept, ..MirrorOptions::default() }).unwrap();
        let mut asked = 0;
        let mut octets = 0;
        for (size, connections, requests) in [(100_000, 8, 400), (20_000_000, 2, 6)] {
            for family in Family::BOTH {
                let server = lab.source.socket(family, LIVE_PORT);
                let load = Load::keep_alive(server, connections, Limit::Requests(requests));
                let report = Load { method: Method::Get(format!("/size/{size}")), ..load }.run(&lab.client).unwrap();
                assert_eq!(report.failed.first(), None);
                asked += requests;
                octets += requests * size;
                assert_eq!(target.wait_for_requests(asked as usize, PATIENCE) as u64, asked);
            }
        }
        // The clients have closed, and the target does when the last answers are acknowledged.
        let open = format!("ss -tanH exclude listening exclude time-wait sport = :{TARGET_PORT}");
        let closed = eventually(PATIENCE, || lab.target.output(&open).unwrap().is_empty());
        assert!(closed, "answers are stuck at the target: {}", lab.target.output(&open).unwrap());
        let again = retransmitted(&lab.target);
        let outcome = mirror.stop().unwrap();
        let swallowed = |name| outcome.intercept.count("swallowed", name);
        let acknowledged = |name| outcome.intercept.count("acknowledged_here", name);
        assert!(swallowed("swallowed_bytes") > octets, "--attach {attach}\n{}", outcome.table);
        assert!(acknowledged("reflected") > 2_000, "--attach {attach}\n{}", outcome.table);
        assert_eq!(acknowledged("reflect_failed"), 0, "{}", outcome.table);
        assert_eq!(acknowledged("reflections_seen"), acknowledged("reflected"), "{}", outcome.table);
        // A time-out is 200 ms at the least: that the worker is that late for one answer of ten is no chance.
        assert!(again * 100 < swallowed("swallowed_segments"), "{again} sent again\n{}", outcome.table);
        let alone = outcome.tcpcopy.count("replay", "pure_acks");
        println!("{attach}: {asked} answers, {again} segments sent again, {alone} acknowledgements of the source");
        assert!(alone < 2 * asked, "{alone} acknowledgements of the source for {asked} answers\n{}", outcome.table);
        outcome.assert_no_leak();
    }
}
