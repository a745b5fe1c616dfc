//! Who mirrors.

use std::{cell::Cell, net::SocketAddr, process::Command, time::Duration};

use anyhow::Context as _;
use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, Program, Summary, eventually,
    mirror::{LIVE_PORT, TARGET_PORT},
    servers::RealServer,
};
use tempfile::TempDir;

use crate::{meter::Tree, workload::FILES};

/// A way to get the live requests to the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contender {
    /// None: what the live service costs alone.
    Nothing,
    /// None, but another client loads the target directly in the same way: what the machine would do if the target had
    /// the requests at no cost of mirroring.
    Direct,
    /// The programs under test, with these arguments of `tcpcopy` and of `intercept` beyond the defaults.
    Tcpcopy { name: String, tcpcopy: Vec<String>, intercept: Vec<String> },
    /// nginx's own `mirror` module in the live server.
    NginxMirror,
    /// Another command, see `--peer-cmd`.
    Peer(String),
}

impl Contender {
    /// Returns its name in tables and files.
    pub fn name(&self) -> &str {
        match self {
            Self::Nothing => "no mirror",
            Self::Direct => "target loaded directly",
            Self::Tcpcopy { name, .. } => name,
            Self::NginxMirror => "nginx mirror",
            Self::Peer(_) => "peer",
        }
    }

    /// Returns whether the live requests are to arrive at the target.
    pub const fn mirrors(&self) -> bool {
        !matches!(self, Self::Nothing | Self::Direct)
    }
}

/// nginx on both sides, and what mirrors between them. All of it is stopped in `Drop`.
pub struct Stage {
    engine: Engine,
    live: Nginx,
    target: Nginx,
}

enum Engine {
    Within,
    Ours(Box<Mirror>),
    Peer(Program),
}

/// What a mirror has cost, one process on each side.
#[derive(Clone, Copy, Debug, Default)]
pub struct Processes {
    /// The program on the source, or all of a peer's.
    pub source: Option<Tree>,
    /// The program on the target.
    pub target: Option<Tree>,
    /// The server under test.
    pub server: Option<Tree>,
}

struct Nginx {
    server: RealServer,
    host: Host,
    /// Questions for the number of requests, which are requests too.
    asked: Cell<u64>,
    _directory: TempDir,
}

impl Stage {
    /// Starts the servers and the contender, and waits until all are ready.
    pub fn set(lab: &Lab, contender: &Contender) -> anyhow::Result<Self> {
        Self::with_workers(lab, contender, None)
    }

    /// Does the same with servers of so many processes, each of which may have as many open files as are allowed.
    pub fn with_workers(lab: &Lab, contender: &Contender, workers: Option<usize>) -> anyhow::Result<Self> {
        let target = Nginx::start(&lab.target, TARGET_PORT, workers, None)?;
        let mirror_to = (*contender == Contender::NginxMirror).then(|| lab.target.socket(Family::V4, TARGET_PORT));
        let live = Nginx::start(&lab.source, LIVE_PORT, workers, mirror_to)?;
        let engine = match contender {
            Contender::Nothing | Contender::Direct | Contender::NginxMirror => Engine::Within,
            Contender::Tcpcopy { tcpcopy, intercept, .. } => {
                let (tcpcopy, intercept) = (tcpcopy.clone(), intercept.clone());
                Engine::Ours(Box::new(Mirror::start(lab, MirrorOptions { tcpcopy, intercept, ..Default::default() })?))
            }
            Contender::Peer(command) => Engine::Peer(start_peer(lab, command)?),
        };
        Ok(Self { engine, live, target })
    }

    /// Returns the processes whose cost is shown.
    pub fn processes(&self) -> Processes {
        let (source, target) = match &self.engine {
            Engine::Within => (None, None),
            Engine::Ours(mirror) => (Some(Tree(mirror.tcpcopy().pid())), Some(Tree(mirror.intercept().pid()))),
            Engine::Peer(program) => (Some(Tree(program.pid())), None),
        };
        Processes { source, target, server: Some(Tree(self.target.server.program.pid())) }
    }

    /// Requests that the live server and the target have served.
    pub fn served(&self) -> anyhow::Result<(u64, u64)> {
        Ok((self.live.served()?, self.target.served()?))
    }

    /// Ends the mirror, and returns what `tcpcopy` has to say about it.
    pub fn clear(self) -> anyhow::Result<Option<Summary>> {
        match self.engine {
            Engine::Within => Ok(None),
            Engine::Ours(mirror) => {
                let outcome = mirror.stop()?;
                anyhow::ensure!(outcome.leaked.is_empty(), "packets of the target reached the client");
                Ok(Some(outcome.tcpcopy))
            }
            Engine::Peer(program) => {
                program.stop().context("the peer did not stop as it should")?;
                Ok(None)
            }
        }
    }
}

/// Runs the peer's command, which is told where everything is, writes `ready` to standard error, and ends at SIGTERM.
fn start_peer(lab: &Lab, line: &str) -> anyhow::Result<Program> {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec {line}")]);
    for (role, host) in [("CLIENT", &lab.client), ("SOURCE", &lab.source), ("TARGET", &lab.target)] {
        command.env(format!("{role}_NETNS"), host.namespace().name());
        command.env(format!("{role}_IP"), host.v4.to_string());
        command.env(format!("{role}_IF"), &host.interface);
    }
    command.env("LIVE_PORT", LIVE_PORT.to_string()).env("TARGET_PORT", TARGET_PORT.to_string());
    let program = Program::start("the peer", &mut command)?;
    program.wait_ready()?;
    Ok(program)
}

impl Nginx {
    /// Starts nginx: a single process unless there are to be several; no access log, the files of the workloads; POSTs
    /// are read and answered with 200. With `mirror` every request is sent there too.
    fn start(host: &Host, port: u16, workers: Option<usize>, mirror: Option<SocketAddr>) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("tclab-").tempdir()?;
        let root = directory.path().display();
        std::fs::create_dir(directory.path().join("www"))?;
        for (name, octets) in FILES {
            std::fs::write(directory.path().join("www").join(name), "x".repeat(octets))?;
        }
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {root}/{what};"))
            .join(" ");
        let upstream =
            mirror.map_or_else(String::new, |to| format!("upstream target {{ server {to}; keepalive 256; }}"));
        let mirroring = mirror.map_or("", |_| {
            "mirror /mirror; location = /mirror { internal; proxy_pass http://target$request_uri; \
             proxy_http_version 1.1; proxy_set_header Connection \"\"; }"
        });
        let (processes, reuseport) = match workers {
            None => ("master_process off;".to_owned(), ""),
            Some(workers) => (format!("worker_processes {workers};"), " reuseport"),
        };
        let configuration = format!(
            "daemon off; {processes} user root; pid {root}/pid; \
             error_log {root}/error.log;\n\
             events {{ worker_connections 20000; }}\n\
             http {{ access_log off; {temporary} client_max_body_size 0; client_body_buffer_size 128k;\n\
             keepalive_requests 100000000; keepalive_timeout 600; {upstream}\n\
             server {{ listen {port} backlog=4096{reuseport}; listen [::]:{port} backlog=4096; root {root}/www; \
             {mirroring}\n\
             error_page 405 =200 @taken; location @taken {{ return 200; }}\n\
             location = /served {{ mirror off; stub_status; allow 127.0.0.1; deny all; }} }} }}\n"
        );
        let file = directory.path().join("nginx.conf");
        std::fs::write(&file, configuration)?;
        let line = format!("nginx -c {} -e {root}/error.log -p {root}", file.display());
        let server = RealServer::custom(host, port, &line)?;
        Ok(Self { server, host: host.clone(), asked: Cell::new(0), _directory: directory })
    }

    /// Requests served so far, these questions not among them: they take the way of `lo`, which nobody mirrors.
    fn served(&self) -> anyhow::Result<u64> {
        let answer = self.host.output(&format!("curl -sS --fail http://127.0.0.1:{}/served", self.server.port()))?;
        let counts = answer.lines().nth(2).context("nginx says nothing of its requests")?;
        let requests: u64 = counts.split_ascii_whitespace().nth(2).context("a count is missing")?.parse()?;
        self.asked.set(self.asked.get() + 1);
        Ok(requests.saturating_sub(self.asked.get()))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // One that is killed would leave its workers behind.
        let program = &self.server.program;
        if program.signal(rustix::process::Signal::TERM).is_ok() {
            eventually(Duration::from_secs(5), || !program.is_running());
        }
    }
}
