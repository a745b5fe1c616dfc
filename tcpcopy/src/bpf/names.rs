//! The names of programs, global values and maps in the objects.

/// Programs.
pub(super) mod program {
    pub(in crate::bpf) const CAPTURE_XDP: &str = "capture_xdp";
    pub(in crate::bpf) const CAPTURE_TC: &str = "capture_tc";
    pub(in crate::bpf) const CAPTURE_TC_L3: &str = "capture_tc_l3";
    pub(in crate::bpf) const ANSWER_TC: &str = "answer_tc";
    pub(in crate::bpf) const ANSWER_TC_L3: &str = "answer_tc_l3";
    pub(in crate::bpf) const LEARN: &str = "learn";
    pub(in crate::bpf) const LEARN_L3: &str = "learn_l3";
    pub(in crate::bpf) const SWALLOW_TCX: &str = "swallow_tcx";
    pub(in crate::bpf) const SWALLOW_TCX_L3: &str = "swallow_tcx_l3";
    pub(in crate::bpf) const SWALLOW_CLSACT: &str = "swallow_clsact";
    pub(in crate::bpf) const SWALLOW_CLSACT_L3: &str = "swallow_clsact_l3";
}

/// Global values: constants to the verifier.
pub(super) mod global {
    pub(in crate::bpf) const CAPTURE_WORKERS: &str = "CAPTURE_WORKERS";
    pub(in crate::bpf) const CAPTURE_CRITERIA: &str = "CAPTURE_CRITERIA";
    pub(in crate::bpf) const SAMPLE_SEED: &str = "SAMPLE_SEED";
    pub(in crate::bpf) const CAPTURE_HANDSHAKES: &str = "CAPTURE_HANDSHAKES";
    pub(in crate::bpf) const CAPTURE_PROMISCUOUS: &str = "CAPTURE_PROMISCUOUS";
    pub(in crate::bpf) const REFLECT: &str = "REFLECT";
    pub(in crate::bpf) const WITH_PREFIXES: &str = "WITH_PREFIXES";
}

/// Maps.
pub(super) mod map {
    pub(in crate::bpf) const PORTS: &str = "PORTS";
    pub(in crate::bpf) const CLIENTS: &str = "CLIENTS";
    pub(in crate::bpf) const SAMPLE_THRESHOLD: &str = "SAMPLE_THRESHOLD";
    pub(in crate::bpf) const ADDRESSES: &str = "ADDRESSES";
    pub(in crate::bpf) const HANDSHAKES: &str = "HANDSHAKES";
    pub(in crate::bpf) const CAPTURE_RINGS: &str = "CAPTURE_RINGS";
    pub(in crate::bpf) const CAPTURE_COUNTERS: &str = "CAPTURE_COUNTERS";
    pub(in crate::bpf) const SIGNALS: &str = "SIGNALS";
    pub(in crate::bpf) const INSTANCES: &str = "INSTANCES";
    pub(in crate::bpf) const PREFIXES: &str = "PREFIXES";
    pub(in crate::bpf) const SESSIONS: &str = "SESSIONS";
    pub(in crate::bpf) const WIRE_STATS: &str = "WIRE_STATS";
    pub(in crate::bpf) const REPORTS: &str = "REPORTS";
    pub(in crate::bpf) const TARGET_COUNTERS: &str = "TARGET_COUNTERS";
}
