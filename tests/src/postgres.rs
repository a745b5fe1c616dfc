//! PostgreSQL, in copies of one cluster.

use std::process::Command;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;

use crate::{Host, PATIENCE, eventually, servers::RealServer};

const AS_POSTGRES: &str = "setpriv --reuid=postgres --regid=postgres --clear-groups";

/// A cluster of which each server has a copy.
pub struct Cluster {
    directory: TempDir,
    /// The directory of the server's programs.
    programs: String,
}

impl Cluster {
    /// Makes a cluster. With a password, its user `postgres` has to prove it (SCRAM-SHA-256, RFC 7677); without,
    /// everybody is trusted.
    pub fn new(password: Option<&str>) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("tclab-").tempdir()?;
        let root = directory.path().display();
        let programs = shell("ls -d /usr/lib/postgresql/*/bin | tail -n 1")?;
        std::fs::write(directory.path().join("password"), password.unwrap_or("none"))?;
        let method = if password.is_some() { "scram-sha-256" } else { "trust" };
        shell(&format!(
            "chmod 755 {root} && chmod 644 {root}/password && install -d -o postgres -g postgres -m 700 {root}/base && \
             cd / && {AS_POSTGRES} {programs}/initdb -D {root}/base -A {method} --pwfile {root}/password -N --locale=C \
             >/dev/null && echo 'host all all all {method}' >>{root}/base/pg_hba.conf"
        ))?;
        Ok(Self { directory, programs })
    }

    /// Starts a server with a copy of its own.
    pub fn start(&self, host: &Host, port: u16) -> anyhow::Result<RealServer> {
        let (root, programs) = (self.directory.path().display(), &self.programs);
        shell(&format!("cp -a {root}/base {root}/{port}"))?;
        let line = format!(
            "{AS_POSTGRES} {programs}/postgres -D {root}/{port} -p {port} -c listen_addresses=* \
             -c unix_socket_directories= -c fsync=off"
        );
        // A port below 1024 is not for everybody.
        host.set_sysctls(&[("ipv4/ip_unprivileged_port_start", "0")])?;
        let server = RealServer::custom(host, port, &line)?;
        let accepts = || host.output(&format!("pg_isready -q -h 127.0.0.1 -p {port}")).is_ok();
        ensure!(eventually(PATIENCE, accepts), "PostgreSQL does not get ready:\n{}", server.program.log());
        Ok(server)
    }
}

fn shell(script: &str) -> anyhow::Result<String> {
    let output = Command::new("sh").args(["-ec", script]).output().context("there is no shell")?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
