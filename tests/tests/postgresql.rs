//! PostgreSQL with passwords (SCRAM): what was said on a connection before cannot be made up for, and a login cannot be
//! repeated, as each server draws a number of its own for it. Neither becomes a storm of connections at the target.

use lab::{
    Family, Lab, Mirror, MirrorOptions, PATIENCE, Program, eventually, laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
    postgres::Cluster,
};

const PASSWORD: &str = "correct horse";

/// `pgbench` with some connections, each of which makes so many queries; a progress line a second.
fn queries(lab: &Lab, family: Family, arguments: &str) -> Program {
    let script = tempfile::Builder::new().prefix("tclab-").tempdir().unwrap();
    let file = script.path().join("query.sql");
    std::fs::write(&file, "SELECT 1;\n").unwrap();
    let mut command = lab.client.command("pgbench");
    let (host, port) = (lab.source.address(family).to_string(), LIVE_PORT.to_string());
    command.args(["-n", "-h", &host, "-p", &port, "-U", "postgres", "-P", "1", "-f"]).arg(&file);
    command.args(arguments.split_ascii_whitespace()).arg("postgres").env("PGPASSWORD", PASSWORD);
    let program = Program::start("pgbench", &mut command).unwrap();
    // It has read the script once it has connected, which it says a second later.
    program.wait_log(PATIENCE, |line| line.starts_with("progress:")).unwrap();
    program
}

#[test]
fn seven_connections_with_passwords_are_no_storm() {
    const OLD: u64 = 7;
    const NEW: u64 = 20;
    let _guard = laboratory!();
    let cluster = Cluster::new(Some(PASSWORD)).unwrap();
    for family in Family::BOTH {
        let lab = Lab::bridge().unwrap();
        let _live = cluster.start(&lab.source, LIVE_PORT).unwrap();
        let target = cluster.start(&lab.target, TARGET_PORT).unwrap();
        // Older than the start.
        let old = queries(&lab, family, &format!("-c {OLD} -R 70 -T 1000"));
        let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
        let line =
            mirror.tcpcopy().wait_log(PATIENCE, |line| line.contains("ends connections that are joined")).unwrap();
        assert!(line.contains("WARN"), "{line}");
        // Hundreds of queries later.
        let lines = || old.log().lines().filter(|line| line.starts_with("progress:")).count();
        let before = lines();
        assert!(eventually(PATIENCE, || lines() >= before + 4), "{}", old.log());
        // Those who connect after the start log in, which the target refuses: once for each.
        let new = queries(&lab, family, &format!("-c {NEW} -R 100 -T 4")).wait(PATIENCE).unwrap();
        assert!(new.status.success() && !new.stderr.contains("FATAL"), "{}", new.stderr);
        assert!(old.is_running(), "{}", old.log());
        let outcome = mirror.stop().unwrap();
        outcome.assert_no_leak();
        let connected = outcome.tcpcopy.count("replay", "connected");
        // Each is tried once, and none again but for the three that may find out that this is in vain.
        assert!((NEW + 3..=OLD + NEW + 3).contains(&connected), "{family:?}: {connected}\n{}", outcome.table);
        let refused = target.program.log();
        assert!(refused.contains("FATAL:  invalid SCRAM response"), "{refused}");
        assert!(refused.lines().count() < 200, "{} lines of complaints", refused.lines().count());
    }
}
