//! Loading the object with the eBPF programs of one host.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::Map,
    programs::{Program, ProgramError},
};
use aya_log::{EbpfLogger, Level};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{
    error::{BpfError, patiently},
    loader::loader,
    logging::ProgramLogger,
    refusal::refusal,
    sys,
};

/// The programs of the production host, built by `build.rs`.
static CAPTURE: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tcpcopy-ebpf-capture"));
/// The programs of the test host, likewise.
static INTERCEPT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tcpcopy-ebpf-intercept"));

/// One of the two objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// That of the production host: it copies what live clients send.
    Capture,
    /// That of the test host: it learns sessions and swallows responses.
    Intercept,
}

/// A loaded object: its maps exist, its programs not yet.
pub(super) struct Object {
    ebpf: Ebpf,
    debug: bool,
}

impl Object {
    /// Loads the object of a side. `configure` sets sizes and global values. With `debug` the programs log, else their
    /// log statements are removed by the verifier.
    pub(super) fn load<'a>(
        side: Side,
        debug: bool,
        configure: impl FnOnce(&mut EbpfLoader<'a>),
    ) -> Result<Self, BpfError> {
        raise_memlock();
        let level: &'static u8 = if debug { &(Level::Debug as u8) } else { &0 };
        let mut loader = loader();
        loader.override_global(aya_log::LEVEL, level, true);
        configure(&mut loader);
        let object = match side {
            Side::Capture => CAPTURE,
            Side::Intercept => INTERCEPT,
        };
        let ebpf = patiently(|| loader.load(object)).map_err(BpfError::object)?;
        Ok(Self { ebpf, debug })
    }

    pub(super) fn map(&self, name: &'static str) -> Result<&Map, BpfError> {
        self.ebpf.map(name).ok_or(BpfError::Missing { name })
    }

    pub(super) fn map_mut(&mut self, name: &'static str) -> Result<&mut Map, BpfError> {
        self.ebpf.map_mut(name).ok_or(BpfError::Missing { name })
    }

    /// Returns the descriptor of a map that is mapped into memory: an array or a ring buffer.
    pub(super) fn map_fd(&self, name: &'static str) -> Result<BorrowedFd<'_>, BpfError> {
        match self.map(name)? {
            Map::Array(data) | Map::RingBuf(data) => Ok(data.fd().as_fd()),
            _ => Err(BpfError::Missing { name }),
        }
    }

    /// Takes a map out, for one owner. Only after the programs that use it are loaded: it is closed with its owner.
    pub(super) fn take_map(&mut self, name: &'static str) -> Result<Map, BpfError> {
        self.ebpf.take_map(name).ok_or(BpfError::Missing { name })
    }

    /// Returns a program of type `P` by its name.
    pub(super) fn program<'a, P>(&'a mut self, name: &'static str) -> Result<&'a mut P, BpfError>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let program = self.ebpf.program_mut(name).ok_or(BpfError::Missing { name })?;
        program.try_into().map_err(|error| refusal(name, &error))
    }

    /// Returns the reader of the programs' log: only with `debug`, and only once.
    pub(super) fn logger(&mut self) -> Option<ProgramLogger> {
        if !self.debug {
            return None;
        }
        EbpfLogger::init(&mut self.ebpf).inspect_err(|error| log::warn!("no log of the eBPF programs: {error}")).ok()
    }
}

/// Lifts the limit of locked memory where the kernel counts maps against it. Later kernels use the memory cgroup.
fn raise_memlock() {
    if sys::kernel_at_least(5, 11) || getrlimit(Resource::Memlock).current.is_none() {
        return;
    }
    if let Err(error) = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }) {
        log::warn!("RLIMIT_MEMLOCK could not be raised: {}", io::Error::from(error));
    }
}
