//! The maps of the test host: private here, behind functions that say what they are for.
//!
//! User space knows them by their names, and sets the real sizes of those whose size is a placeholder.

use aya_ebpf::{
    Global,
    bindings::{BPF_ANY, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf},
    helpers::bpf_ktime_get_ns,
    macros::btf_map,
};
use tcpcopy_common::{
    counters::TargetCounter,
    flow::Flow,
    mark::MarkKey,
    prefix::PrefixKey,
    response::{ResponseHeader, Session, WireStats, state},
    wakeup::Signals,
};

use crate::{fragment::FragmentKey, ring::Ring};

const PLACEHOLDER: usize = 1024;
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
/// One connection of each worker of each source; more would be an attack.
const MAX_INSTANCES: usize = 4096;
/// Datagrams whose fragments are under way at a time. The fragments of one follow each other at once.
const MAX_FRAGMENTED: usize = 1024;

/// Targets whose responses are reported with their first octets, of all instances.
const MAX_PREFIXES: usize = 8192;

/// What the programs of this object count.
pub type HostCounter = TargetCounter;

/// Whether acknowledgements are reflected. A constant to the verifier.
#[unsafe(no_mangle)]
static REFLECT: Global<u32> = Global::new(0);

/// Whether reports may have prefixes. A constant to the verifier, which follows too many paths before Linux 6.6.
#[unsafe(no_mangle)]
static WITH_PREFIXES: Global<u32> = Global::new(0);

#[btf_map]
static INSTANCES: HashMap<u32, MarkKey, MAX_INSTANCES, NO_PREALLOC> = HashMap::new();

/// Not an LRU map: a session evicted for another's sake would leak its responses.
#[btf_map]
static SESSIONS: HashMap<Flow, Session, PLACEHOLDER, NO_PREALLOC> = HashMap::new();

/// In octets. Without an entry: none.
#[btf_map]
static PREFIXES: HashMap<PrefixKey, u32, MAX_PREFIXES, NO_PREALLOC> = HashMap::new();

#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, ResponseHeader, MAX_FRAGMENTED> = LruHashMap::new();

#[btf_map]
static WIRE_STATS: PerCpuHashMap<u32, WireStats, MAX_INSTANCES, NO_PREALLOC> = PerCpuHashMap::new();

/// Where a report is made whose size is not known yet.
#[btf_map]
static DRAFT: PerCpuArray<ResponseHeader, 1> = PerCpuArray::new();

#[btf_map]
static REPORTS: Ring<ResponseHeader> = RingBuf::new();

#[btf_map]
static TARGET_COUNTERS: PerCpuArray<u64, { TargetCounter::COUNT as usize }> = PerCpuArray::new();

/// Of the one ring.
#[btf_map]
static SIGNALS: Array<Signals, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// This CPU's cell of a counter.
#[inline(always)]
pub fn counter(counter: TargetCounter) -> Option<*mut u64> {
    TARGET_COUNTERS.get_ptr_mut(counter as u32)
}

/// The flag of a ring's reader.
#[inline(always)]
pub fn signals(ring: u32) -> Option<*mut Signals> {
    SIGNALS.get_ptr_mut(ring)
}

/// The key of an instance.
#[inline(always)]
pub fn instance_key(instance: u32) -> Option<&'static MarkKey> {
    // SAFETY: without preallocation the entry stays readable until the program ends, even if it is removed meanwhile.
    unsafe { INSTANCES.get(instance) }
}

/// The replayed session on a four-tuple.
#[inline(always)]
pub fn session(flow: &Flow) -> Option<Session> {
    // SAFETY: as above. Entries are replaced as a whole; only the time of the last segment is written in place.
    unsafe { SESSIONS.get(flow) }.copied()
}

/// Whether acknowledgements are reflected.
#[inline(always)]
pub fn reflects() -> bool {
    REFLECT.load() != 0
}

/// Whether reports may have prefixes.
#[inline(always)]
pub fn with_prefixes() -> bool {
    WITH_PREFIXES.load() != 0
}

/// A session in its map.
pub struct Entry(*mut Session);

impl Entry {
    /// A copy of it.
    #[inline(always)]
    pub fn session(&self) -> Session {
        // SAFETY: the pointer is valid for this program's run, and what is written in place are aligned words.
        unsafe { *self.0 }
    }

    /// See [`Session::answered`].
    #[inline(always)]
    pub fn answered(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).answered).read_volatile() }
    }

    /// Likewise. The segments of a connection leave one after the other: their socket is locked.
    #[inline(always)]
    pub fn set_answered(&self, next: u32) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).answered).write_volatile(next) };
    }

    /// Notes that the target has answered the session's SYN.
    #[inline(always)]
    pub fn set_open(&self) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).state).write_volatile(state::OPEN) };
    }
}

/// The replayed session on a four-tuple, where it is.
#[inline(always)]
pub fn session_entry(flow: &Flow) -> Option<Entry> {
    SESSIONS.get_ptr_mut(flow).map(Entry)
}

/// The replayed session on a four-tuple, whose client was just seen.
#[inline(always)]
pub fn session_seen(flow: &Flow) -> Option<Session> {
    let session = SESSIONS.get_ptr_mut(flow)?;
    // SAFETY: the pointer is valid for this program's run. Other CPUs may write the same aligned word: any of the times
    // will do.
    unsafe {
        (&raw mut (*session).last_seen_ns).write_volatile(bpf_ktime_get_ns());
        Some(*session)
    }
}

/// Why a session could not be entered.
pub enum NotInserted {
    /// Another CPU was quicker.
    Present,
    /// There is no room.
    Full,
}

/// Enters a new session.
#[inline(always)]
pub fn insert_session(flow: &Flow, session: &Session) -> Result<(), NotInserted> {
    const EEXIST: i32 = -17;
    SESSIONS.insert(flow, session, BPF_NOEXIST as u64).map_err(|error| match error {
        EEXIST => NotInserted::Present,
        _ => NotInserted::Full,
    })
}

/// Enters a session in the place of the one that is there.
#[inline(always)]
pub fn replace_session(flow: &Flow, session: &Session) -> Result<(), NotInserted> {
    SESSIONS.insert(flow, session, BPF_ANY as u64).map_err(|_| NotInserted::Full)
}

/// Removes a session. One that is gone already is just as well.
#[inline(always)]
pub fn remove_session(flow: &Flow) {
    let _ = SESSIONS.remove(flow);
}

/// This CPU's statistics of an instance.
#[inline(always)]
pub fn wire_stats(instance: u32) -> Option<*mut WireStats> {
    WIRE_STATS.get_ptr_mut(instance)
}

/// The octets of a response's payload that its report carries, for sessions that an instance opens now.
#[inline(always)]
pub fn prefix(instance: u32, flow: &Flow) -> u32 {
    let key = PrefixKey { address: flow.server, instance, port: flow.server_port, _reserved: [0; 2] };
    // SAFETY: as above. An entry is an aligned word, and either of the values that it had will do.
    unsafe { PREFIXES.get(key) }.copied().unwrap_or(0)
}

/// This CPU's place for a report whose size is not known yet.
#[inline(always)]
pub fn draft() -> Option<*mut ResponseHeader> {
    DRAFT.get_ptr_mut(0)
}

/// The ring of reports to `intercept`.
#[inline(always)]
pub fn reports() -> &'static Ring<ResponseHeader> {
    &REPORTS
}

/// The report of the response whose first fragment was swallowed. Its sequence number is that of octet 0 of the
/// datagram: of the TCP header, if that had one.
#[inline(always)]
pub fn fragmented(key: &FragmentKey) -> Option<&'static ResponseHeader> {
    // SAFETY: an entry may be evicted and reused while it is read. Then the report of a fragment is wrong, and the
    // connection recovers as from a loss; the fragment is swallowed anyhow.
    unsafe { FRAGMENTS.get(key) }
}

/// Remembers a response whose first fragment was swallowed, in the form that [`fragmented`] gives back. It fails only
/// when the kernel is out of memory.
#[inline(always)]
pub fn remember_fragmented(key: &FragmentKey, response: &ResponseHeader) -> bool {
    FRAGMENTS.insert(key, response, BPF_ANY as u64).is_ok()
}
