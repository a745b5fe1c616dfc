//! Real servers, with configurations of their own in a temporary directory.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;

use crate::{Family, Host, PATIENCE, Program, eventually};

/// Who tells a server the address of its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// The connection.
    ByConnection,
    /// The header of the PROXY protocol with which each connection begins.
    ByHeader,
}

/// A server and its files.
pub struct RealServer {
    /// The process.
    pub program: Program,
    directory: TempDir,
    port: u16,
}

impl RealServer {
    /// Starts nginx with one worker. Its access log has a line `METHOD URI STATUS` for each request; `/` and `/big.bin`
    /// (1 MiB) exist, query strings are ignored; when each was served is in [`served_at`](Self::served_at).
    /// `keep_alive` requests are served on a connection (nginx's own default: 1000).
    pub fn nginx(host: &Host, port: u16, keep_alive: u32) -> anyhow::Result<Self> {
        let format = "$request_method $request_uri $status";
        Self::nginx_with(host, port, &format!("{}  keepalive_requests {keep_alive};\n", access_log(format)), "")
    }

    /// Starts nginx, with lines `CLIENT PORT METHOD URI STATUS` in its access log. Where it is
    /// [`Named::ByHeader`], [`services`](Self::services) says which service each client has asked, and who has
    /// connected.
    pub fn nginx_naming_clients(host: &Host, port: u16, named: Named) -> anyhow::Result<Self> {
        let mut http = access_log("$remote_addr $remote_port $request_method $request_uri $status");
        if named == Named::ByHeader {
            // Who may name clients: everybody, because each client has an address of its own at the target.
            http.push_str(
                "  real_ip_header proxy_protocol;\n  set_real_ip_from 0.0.0.0/0;\n  set_real_ip_from ::/0;\n  \
                 log_format services '$proxy_protocol_server_addr $proxy_protocol_server_port $realip_remote_addr';\n  \
                 access_log {root}/services.log services;\n",
            );
        }
        let listens = if named == Named::ByHeader { " proxy_protocol" } else { "" };
        Self::nginx_with(host, port, &http, listens)
    }

    /// Starts nginx with further lines in its block `http`, in which `{root}` is replaced, and parameters of `listen`.
    fn nginx_with(host: &Host, port: u16, http: &str, listens: &str) -> anyhow::Result<Self> {
        let directory = document_root()?;
        let root = directory.path().display();
        let http = http.replace("{root}", &root.to_string());
        let configuration = format!(
            "daemon off;\nuser root;\nworker_processes 1;\npid {root}/pid;\nerror_log {root}/error.log;\n\
             events {{ worker_connections 12288; }}\n\
             http {{\n{http}  \
             log_format time '$msec';\n  access_log {root}/times.log time;\n  \
             client_body_temp_path {root}/body;\n  \
             proxy_temp_path {root}/proxy;\n  \
             fastcgi_temp_path {root}/fastcgi;\n  uwsgi_temp_path {root}/uwsgi;\n  scgi_temp_path {root}/scgi;\n  \
             server {{\n    listen {port}{listens} backlog=4096;\n    listen [::]:{port}{listens} backlog=4096;\n    \
             root {root}/www;\n  }}\n}}\n"
        );
        let file = write(directory.path(), "nginx.conf", &configuration)?;
        let error_log = directory.path().join("error.log");
        let mut command = host.command("nginx");
        command.arg("-c").arg(&file).arg("-e").arg(error_log).arg("-p").arg(directory.path());
        Self::start("nginx", host, port, directory, command)
    }

    /// Starts Apache with the event module, in one process, as one that is given up for want of work closes its
    /// connections between two requests; log and documents like [`nginx`](Self::nginx) (Apache's own default: 100).
    pub fn apache(host: &Host, port: u16, keep_alive: u32) -> anyhow::Result<Self> {
        Self::apache_with(host, port, keep_alive, "LogFormat \"%m %U%q %>s\" short\n")
    }

    /// Starts Apache, with the access log of [`nginx_naming_clients`](Self::nginx_naming_clients).
    pub fn apache_naming_clients(host: &Host, port: u16, keep_alive: u32, named: Named) -> anyhow::Result<Self> {
        let by_header = match named {
            Named::ByConnection => "",
            Named::ByHeader => {
                "LoadModule remoteip_module /usr/lib/apache2/modules/mod_remoteip.so\nRemoteIPProxyProtocol On\n"
            }
        };
        let lines = format!("{by_header}LogFormat \"%a %{{remote}}p %m %U%q %>s\" short\n");
        Self::apache_with(host, port, keep_alive, &lines)
    }

    fn apache_with(host: &Host, port: u16, keep_alive: u32, lines: &str) -> anyhow::Result<Self> {
        let directory = document_root()?;
        let root = directory.path().display();
        let configuration = format!(
            "ServerRoot {root}\nServerName lab\nPidFile {root}/pid\nErrorLog {root}/error.log\nMutex file:{root}\n\
             LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so\n\
             LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so\n\
             LoadModule dir_module /usr/lib/apache2/modules/mod_dir.so\n\
             User www-data\nGroup www-data\nListen {port}\nListenBacklog 4096\nDocumentRoot {root}/www\n\
             <Directory {root}/www>\n  Require all granted\n</Directory>\n\
             ServerLimit 1\nStartServers 1\nThreadLimit 256\nThreadsPerChild 256\nMaxRequestWorkers 256\n\
             MinSpareThreads 1\nMaxSpareThreads 256\n\
             KeepAlive On\nMaxKeepAliveRequests {keep_alive}\nKeepAliveTimeout 60\n\
             {lines}CustomLog {root}/access.log short\n"
        );
        let file = write(directory.path(), "apache.conf", &configuration)?;
        let mut command = host.command("apache2");
        command.args(["-D", "FOREGROUND", "-f"]).arg(&file);
        Self::start("apache2", host, port, directory, command)
    }

    /// Starts Redis, in memory only, with `DEBUG DIGEST` allowed.
    pub fn redis(host: &Host, port: u16) -> anyhow::Result<Self> {
        let directory = temporary_directory()?;
        let mut command = host.command("redis-server");
        command
            .args(["--port", &port.to_string(), "--bind", "0.0.0.0", "::", "--protected-mode", "no"])
            .args(["--save", "", "--appendonly", "no", "--enable-debug-command", "yes", "--tcp-backlog", "4096"])
            .arg("--dir")
            .arg(directory.path());
        Self::start("redis-server", host, port, directory, command)
    }

    /// Starts any program that is to serve a port; `{port}` in its command line is replaced. It runs by way of `sh`.
    pub fn custom(host: &Host, port: u16, command_line: &str) -> anyhow::Result<Self> {
        let directory = temporary_directory()?;
        let mut command = host.command("sh");
        command.args(["-c", &format!("exec {}", command_line.replace("{port}", &port.to_string()))]);
        Self::start(command_line, host, port, directory, command)
    }

    fn start(
        name: &str,
        host: &Host,
        port: u16,
        directory: TempDir,
        mut command: std::process::Command,
    ) -> anyhow::Result<Self> {
        let program = Program::start(name, &mut command)?;
        // Nobody tells when another's server accepts connections, so it has to be tried.
        let accepts = |address: SocketAddr| TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok();
        let address = host.socket(Family::V4, port);
        let ready = host.run(|| eventually(PATIENCE, || accepts(address) || !program.is_running()))?;
        let complaints = fs::read_to_string(directory.path().join("error.log")).unwrap_or_default();
        ensure!(
            ready && program.is_running(),
            "{name} does not accept connections on {address}:\n{}\n{complaints}",
            program.log()
        );
        Ok(Self { program, directory, port })
    }

    /// Returns the port where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the lines of the access log so far.
    pub fn access_log(&self) -> anyhow::Result<Vec<String>> {
        self.lines("access.log")
    }

    /// Returns a line `ADDRESS PORT PEER` for each request so far: the service that the header names, and whose address
    /// the connection has; only of [`nginx_naming_clients`](Self::nginx_naming_clients).
    pub fn services(&self) -> anyhow::Result<Vec<String>> {
        self.lines("services.log")
    }

    /// Returns when each request was served, seconds of the wall clock; only of [`nginx`](Self::nginx).
    pub fn served_at(&self) -> anyhow::Result<Vec<f64>> {
        let lines = self.lines("times.log")?;
        lines.iter().map(|line| line.parse().with_context(|| format!("{line:?} is not a time"))).collect()
    }

    fn lines(&self, log: &str) -> anyhow::Result<Vec<String>> {
        let path = self.directory.path().join(log);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Waits until the access log has that many lines, and returns them.
    pub fn wait_for_access_log(&self, lines: usize, limit: Duration) -> anyhow::Result<Vec<String>> {
        eventually(limit, || self.access_log().is_ok_and(|log| log.len() >= lines));
        self.access_log()
    }
}

/// The lines of nginx's block `http` for an access log of this format.
fn access_log(format: &str) -> String {
    format!("  log_format short '{format}';\n  access_log {{root}}/access.log short;\n")
}

/// The distribution's Python, which has the modules of its packages; another that comes first in `PATH` has not.
pub const PYTHON: &str = "/usr/bin/python3";

/// Whether [`PYTHON`] has a module.
pub fn python_has(module: &str) -> bool {
    let import = std::process::Command::new(PYTHON).args(["-c", &format!("import {module}")]).output();
    import.is_ok_and(|output| output.status.success())
}

/// Creates a directory that a server may enter which gives up root's rights.
fn temporary_directory() -> anyhow::Result<TempDir> {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::Builder::new().prefix("tclab-").tempdir().context("cannot make a temporary directory")?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    Ok(directory)
}

fn document_root() -> anyhow::Result<TempDir> {
    let directory = temporary_directory()?;
    fs::create_dir(directory.path().join("www"))?;
    write(directory.path(), "www/index.html", "<!doctype html><title>lab</title>\n")?;
    write(directory.path(), "www/big.bin", &"0123456789abcdef".repeat(1 << 16))?;
    Ok(directory)
}

fn write(directory: &Path, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    let path = directory.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Lab,
        http::{Limit, Load, Method},
        laboratory,
    };

    #[test]
    fn the_real_servers_log_every_request() {
        let _guard = laboratory!();
        let lab = Lab::bridge().unwrap();
        let nginx = RealServer::nginx(&lab.source, 80, 1_000_000).unwrap();
        let apache = RealServer::apache(&lab.target, 80, 100).unwrap();
        for (server, host) in [(&nginx, &lab.source), (&apache, &lab.target)] {
            for family in Family::BOTH {
                for path in ["/", "/big.bin"] {
                    let load = Load::keep_alive(host.socket(family, 80), 2, Limit::Requests(250));
                    let report = Load { method: Method::Get(path.into()), ..load }.run(&lab.client).unwrap();
                    assert_eq!(report.failed, Vec::<String>::new());
                }
            }
            let log = server.wait_for_access_log(1000, PATIENCE).unwrap();
            assert_eq!(log.len(), 1000);
            assert!(log.iter().all(|line| line.starts_with("GET /") && line.ends_with(" 200")), "{:?}", log.first());
        }
    }

    #[test]
    fn redis_answers() {
        let _guard = laboratory!();
        let lab = Lab::bridge().unwrap();
        let redis = RealServer::redis(&lab.source, 6379).unwrap();
        let answer = lab.client.output(&format!("redis-cli -h {} -p {} DEBUG DIGEST", lab.source.v4, redis.port()));
        assert_eq!(answer.unwrap().trim(), "0".repeat(40));
    }
}
