//! The maps of the production host: private here, behind functions that say what they are for.
//!
//! User space knows them by their names, and sets the real sizes of those whose size is a placeholder.

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, PerCpuArray, lpm_trie},
    macros::btf_map,
};
use tcpcopy_common::{
    capture::{CaptureHeader, HANDSHAKE_SLOTS, MAX_WORKERS, Rule, RuleKey},
    counters::CaptureCounter,
    flow::{Flow, IpAddress},
    wakeup::Signals,
};

use crate::ring::Ring;

const PLACEHOLDER: usize = 1024;

/// What the programs of this object count.
pub type HostCounter = CaptureCounter;

/// How many workers, and so rings, there are. A constant to the verifier.
#[unsafe(no_mangle)]
static CAPTURE_WORKERS: Global<u32> = Global::new(1);

/// By what connections are chosen, see [`criterion`](tcpcopy_common::capture::criterion). A constant to the verifier,
/// which removes what is not asked for.
#[unsafe(no_mangle)]
static CAPTURE_CRITERIA: Global<u32> = Global::new(0);

/// Which lottery decides on the sample.
#[unsafe(no_mangle)]
static SAMPLE_SEED: Global<u32> = Global::new(0);

/// Connections that have drawn less are in the sample. Not a constant: it may grow.
#[btf_map]
static SAMPLE_THRESHOLD: Array<u64, 1> = Array::new();

/// Whether frames for other hosts are copied too. A constant to the verifier.
#[unsafe(no_mangle)]
static CAPTURE_PROMISCUOUS: Global<u32> = Global::new(0);

/// Whether the acknowledgements that end handshakes are copied. A constant to the verifier.
#[unsafe(no_mangle)]
static CAPTURE_HANDSHAKES: Global<u32> = Global::new(0);

/// By the hash of a flow: what [`expect_ack`] was told last. Not a hash map: a SYN then costs a store, however many
/// come, and an acknowledgement a comparison. User space makes it as large as the hash needs where it is used.
#[btf_map]
static HANDSHAKES: Array<u32, PLACEHOLDER> = Array::new();

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

/// One per ring.
#[btf_map]
static SIGNALS: Array<Signals, { MAX_WORKERS as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

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

/// Whether frames for other hosts are copied too.
#[inline(always)]
pub fn promiscuous() -> bool {
    CAPTURE_PROMISCUOUS.load() != 0
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
        // SAFETY: the pointer is valid for this program's run. Other CPUs may write the same aligned word: the
        // handshake of the one that comes first is not measured then.
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

/// This CPU's cell of a counter.
#[inline(always)]
pub fn counter(counter: CaptureCounter) -> Option<*mut u64> {
    CAPTURE_COUNTERS.get_ptr_mut(counter as u32)
}

/// The flag of a ring's reader.
#[inline(always)]
pub fn signals(ring: u32) -> Option<*mut Signals> {
    SIGNALS.get_ptr_mut(ring)
}
