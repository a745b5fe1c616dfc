//! The maps: private here, behind functions that say what they are for.
//!
//! User space knows them by their names, and sets the real sizes of those whose size is a placeholder.

use aya_ebpf::{
    Global,
    bindings::{BPF_ANY, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, lpm_trie},
    helpers::bpf_ktime_get_ns,
    macros::btf_map,
};
use tcpcopy_common::{
    capture::{CaptureHeader, HANDSHAKE_SLOTS, MAX_WORKERS, Rule, RuleKey},
    counters::{CaptureCounter, TargetCounter},
    flow::{Flow, IpAddress},
    mark::MarkKey,
    response::{ResponseHeader, Session, WireStats},
    wakeup::Signals,
};

use crate::fragment::FragmentKey;

/// A ring of a size that user space decides.
pub type Ring<T> = RingBuf<T, PLACEHOLDER_RING>;

const PLACEHOLDER: usize = 1024;
/// A multiple of the page of every machine, of which the largest has 64 KiB: else the kernel refuses the ring.
const PLACEHOLDER_RING: usize = 64 << 10;
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
/// One connection of each worker of each source; more would be an attack.
const MAX_INSTANCES: usize = 4096;
/// Datagrams whose fragments are under way at a time. The fragments of one follow each other at once.
const MAX_FRAGMENTED: usize = 1024;

/// How many workers, and so rings, there are. A constant to the verifier.
#[unsafe(no_mangle)]
static CAPTURE_WORKERS: Global<u32> = Global::new(1);

/// By what connections are chosen, see [`criterion`](tcpcopy_common::capture::criterion). A constant to the verifier, which
/// removes what is not asked for.
#[unsafe(no_mangle)]
static CAPTURE_CRITERIA: Global<u32> = Global::new(0);

/// Which lottery decides on the sample.
#[unsafe(no_mangle)]
static SAMPLE_SEED: Global<u32> = Global::new(0);

/// Connections that have drawn less are in the sample. Not a constant: it may grow.
#[btf_map]
static SAMPLE_THRESHOLD: Array<u64, 1> = Array::new();

/// Whether the acknowledgements that end handshakes are copied. A constant to the verifier.
#[unsafe(no_mangle)]
static CAPTURE_HANDSHAKES: Global<u32> = Global::new(0);

/// By the hash of a flow: what [`expect_ack`] was told last. Not a hash map: a SYN then costs a store, however many come, and an
/// acknowledgement a comparison. User space makes it as large as the hash needs where it is used.
#[btf_map]
static HANDSHAKES: Array<u32, PLACEHOLDER> = Array::new();

/// Whether acknowledgements are reflected. A constant to the verifier.
#[unsafe(no_mangle)]
static REFLECT: Global<u32> = Global::new(0);

/// By ranges of client addresses: whether they are wanted. The ranges include all addresses.
#[btf_map]
static CLIENTS: LpmTrie<IpAddress, u32, PLACEHOLDER> = LpmTrie::new();

/// By destination port, in host order.
#[btf_map]
static PORTS: Array<Rule, 65536> = Array::new();

#[btf_map]
static ADDRESSES: HashMap<RuleKey, Rule, PLACEHOLDER> = HashMap::new();

#[btf_map]
static CAPTURE_RINGS: ArrayOfMaps<Ring<CaptureHeader>, { MAX_WORKERS as usize }> = ArrayOfMaps::new();

#[btf_map]
static CAPTURE_COUNTERS: PerCpuArray<u64, { CaptureCounter::COUNT as usize }> = PerCpuArray::new();

/// One per ring; the reports have only one ring.
#[btf_map]
static SIGNALS: Array<Signals, { MAX_WORKERS as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map]
static INSTANCES: HashMap<u32, MarkKey, MAX_INSTANCES, NO_PREALLOC> = HashMap::new();

/// Not an LRU map: a session evicted for another's sake would leak its responses.
#[btf_map]
static SESSIONS: HashMap<Flow, Session, PLACEHOLDER, NO_PREALLOC> = HashMap::new();

#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, ResponseHeader, MAX_FRAGMENTED> = LruHashMap::new();

#[btf_map]
static WIRE_STATS: PerCpuHashMap<u32, WireStats, MAX_INSTANCES, NO_PREALLOC> = PerCpuHashMap::new();

#[btf_map]
static REPORTS: Ring<ResponseHeader> = RingBuf::new();

#[btf_map]
static TARGET_COUNTERS: PerCpuArray<u64, { TargetCounter::COUNT as usize }> = PerCpuArray::new();

/// How many workers there are.
#[inline(always)]
pub fn workers() -> u32 {
    CAPTURE_WORKERS.load()
}

/// By what connections are chosen.
#[inline(always)]
pub fn criteria() -> u32 {
    CAPTURE_CRITERIA.load()
}

/// Whether the smallest range that a client's address is in is one of those wanted.
#[inline(always)]
pub fn client_wanted(client: &IpAddress) -> bool {
    let key = lpm_trie::Key::new(u8::BITS * size_of::<IpAddress>() as u32, *client);
    CLIENTS.get(&key).is_some_and(|wanted| *wanted != 0)
}

/// Whether a connection is in the sample.
#[inline(always)]
pub fn sampled(flow: &Flow) -> bool {
    let threshold = SAMPLE_THRESHOLD.get(0).map_or(0, |threshold| {
        // SAFETY: the reference is valid. User space writes the aligned word at any time: either of the values will do.
        unsafe { (&raw const *threshold).read_volatile() }
    });
    (flow.draw(SAMPLE_SEED.load()) as u64) < threshold
}

/// Whether the acknowledgements that end handshakes are copied.
#[inline(always)]
pub fn handshakes_wanted() -> bool {
    CAPTURE_HANDSHAKES.load() != 0
}

/// A client has begun a handshake, and will end it with this sequence number (host order).
#[inline(always)]
pub fn expect_ack(flow: &Flow, seq: u32) {
    if let Some(slot) = HANDSHAKES.get_ptr_mut(flow.hash() & (HANDSHAKE_SLOTS - 1)) {
        // SAFETY: the pointer is valid for this program's run. Other CPUs may write the same aligned word: the handshake of the
        // one that comes first is not measured then.
        unsafe { slot.write_volatile(seq) };
    }
}

/// Whether that was expected of the flow; once.
#[inline(always)]
pub fn take_ack(flow: &Flow, seq: u32) -> bool {
    let Some(slot) = HANDSHAKES.get_ptr_mut(flow.hash() & (HANDSHAKE_SLOTS - 1)) else { return false };
    // SAFETY: as above. If two CPUs take the same word, user space sees two acknowledgements, and ignores the second.
    unsafe {
        let expected = slot.read_volatile() == seq;
        if expected {
            // The number that this connection's acknowledgements come to last, after 2 GiB.
            slot.write_volatile(seq ^ 1 << 31);
        }
        expected
    }
}

/// The rule for a destination port, in host order.
#[inline(always)]
pub fn port_rule(port: u16) -> Option<&'static Rule> {
    PORTS.get(port as u32)
}

/// The rule for a service.
#[inline(always)]
pub fn service_rule(service: &RuleKey) -> Option<Rule> {
    // SAFETY: user space fills the map before the programs are attached and leaves it alone afterwards.
    unsafe { ADDRESSES.get(service) }.copied()
}

/// The ring of a worker.
#[inline(always)]
pub fn capture_ring(worker: u32) -> Option<&'static Ring<CaptureHeader>> {
    CAPTURE_RINGS.get(worker)
}

#[inline(always)]
pub fn capture_counter(counter: CaptureCounter) -> Option<*mut u64> {
    CAPTURE_COUNTERS.get_ptr_mut(counter as u32)
}

#[inline(always)]
pub fn target_counter(counter: TargetCounter) -> Option<*mut u64> {
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

/// The ring of reports to `intercept`.
#[inline(always)]
pub fn reports() -> &'static Ring<ResponseHeader> {
    &REPORTS
}

/// The report of the response whose first fragment was swallowed. Its sequence number is that of octet 0 of the datagram:
/// of the TCP header, if that had one.
#[inline(always)]
pub fn fragmented(key: &FragmentKey) -> Option<&'static ResponseHeader> {
    // SAFETY: an entry may be evicted and reused while it is read. Then the report of a fragment is wrong, and the
    // connection recovers as from a loss; the fragment is swallowed anyhow.
    unsafe { FRAGMENTS.get(key) }
}

/// Remembers a response whose first fragment was swallowed, in the form that [`fragmented`] gives back. It fails only when
/// the kernel is out of memory.
#[inline(always)]
pub fn remember_fragmented(key: &FragmentKey, response: &ResponseHeader) -> bool {
    FRAGMENTS.insert(key, response, BPF_ANY as u64).is_ok()
}
