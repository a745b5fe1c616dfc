//! A host of the laboratory: a namespace, its addresses, and ways to run something there.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::process::CommandExt as _,
    path::Path,
    process::Command,
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::Context as _;

use crate::namespace::Namespace;

/// Which version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

/// A host. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Host {
    namespace: Arc<Namespace>,
    /// What it does in the topology: `client`, `source`, `target` …
    pub role: &'static str,
    /// The interface that has its addresses.
    pub interface: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

impl Host {
    pub(crate) fn new(namespace: Namespace, role: &'static str, interface: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> Self {
        Self { namespace: Arc::new(namespace), role, interface: interface.to_owned(), v4, v6 }
    }

    /// Returns its address.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Returns its address with a port.
    pub fn socket(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(family), port)
    }

    /// Returns its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Returns a command that runs here, with this host's `/sys`, speaks English, inherits no descriptors but its
    /// standard streams, and dies with the thread that starts it. What signals do to it by default does not depend on
    /// what they do to us: under nohup(1), for one, we ignore SIGHUP.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.namespace.name()]).arg(program.as_ref()).env("LC_ALL", "C");
        let prepare = || {
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2] {
                // SAFETY: the default action of a signal touches nothing of this process's memory. It cannot fail for
                // these.
                unsafe { libc::signal(signal, libc::SIG_DFL) };
            }
            // SAFETY: no descriptor is closed before the command takes our place. (It fails before Linux 5.11, and then
            // more is inherited.)
            unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
            let signal = Some(rustix::process::Signal::KILL);
            rustix::process::set_parent_process_death_signal(signal).map_err(Into::into)
        };
        // SAFETY: between fork and exec only system calls are made.
        unsafe { command.pre_exec(prepare) };
        command
    }

    /// Returns what a command prints that runs here; an error when it fails.
    pub fn output(&self, command: &str) -> anyhow::Result<String> {
        self.namespace.output(command)
    }

    /// Returns how many connections to a port of this host are open.
    pub fn connections(&self, port: u16) -> anyhow::Result<usize> {
        Ok(self.output(&format!("ss -Htn state established sport = :{port}"))?.lines().count())
    }

    /// Runs lines of `ip` here.
    pub fn ip<S: AsRef<str>>(&self, lines: &[S]) -> anyhow::Result<()> {
        self.namespace.ip(&lines.iter().map(|l| l.as_ref().to_owned()).collect::<Vec<_>>())
    }

    /// Runs a closure here and waits for its value: its sockets belong to this host.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| self.namespace.enter().map(|()| f()));
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread here.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        f: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<JoinHandle<anyhow::Result<T>>> {
        let host = self.clone();
        thread::Builder::new()
            .name(format!("{}:{name}", self.role))
            .spawn(move || {
                host.namespace.enter()?;
                // A thread that nobody joins must not keep the laboratory from being removed.
                drop(host);
                f()
            })
            .context("cannot start a thread")
    }

    /// Sets sysctls of the network (`ipv4/ip_forward` …).
    pub fn set_sysctls(&self, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        self.run(|| {
            settings.iter().try_for_each(|(name, value)| {
                fs::write(Path::new("/proc/sys/net").join(name), value)
                    .with_context(|| format!("cannot set net/{name} to {value}"))
            })
        })?
    }

    /// Returns all sysctls of the network, to compare with later.
    pub fn sysctls(&self) -> anyhow::Result<BTreeMap<String, String>> {
        fn collect(directory: &Path, into: &mut BTreeMap<String, String>) {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    collect(&path, into);
                } else if let Ok(value) = fs::read_to_string(&path) {
                    into.insert(path.to_string_lossy().into_owned(), value);
                }
            }
        }
        self.run(|| {
            let mut all = BTreeMap::new();
            collect(Path::new("/proc/sys/net"), &mut all);
            all
        })
    }
}
