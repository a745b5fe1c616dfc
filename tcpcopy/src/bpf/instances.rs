//! The kernel's side of the instances: whose marks it accepts, what it has seen of each, and what each wants of
//! responses.

use std::{collections::HashMap as Table, net::SocketAddr};

use aya::{
    maps::{HashMap, MapData, MapError, PerCpuHashMap, PerCpuValues},
    util::nr_cpus,
};
use tcpcopy_common::{
    mark::MarkKey,
    prefix::{Prefix, PrefixKey},
    response::WireStats,
};

use super::{
    error::{BpfError, absent_is_fine, patiently},
    names::map,
    object::Object,
    sys,
};

/// The maps of the instances. Dropping this leaves them to the programs as they are.
pub struct InstanceMaps {
    keys: HashMap<MapData, u32, MarkKey>,
    wire_stats: PerCpuHashMap<MapData, u32, WireStats>,
    prefixes: HashMap<MapData, PrefixKey, u32>,
    /// The keys of `prefixes`, by instance. Most have none.
    targets: Table<u32, Vec<PrefixKey>>,
}

impl InstanceMaps {
    /// Whether reports can have prefixes, as the programs read it. The verifiers before Linux 6.6 forget what they know where
    /// functions return, and would follow too many paths.
    pub(super) fn with_prefixes() -> &'static u32 {
        if sys::kernel_at_least(6, 6) { &1 } else { &0 }
    }

    /// Returns whether this kernel's reports can have prefixes.
    #[must_use]
    pub fn can_report_prefixes(&self) -> bool {
        *Self::with_prefixes() != 0
    }

    /// Takes the maps out of an object whose programs are loaded.
    pub(super) fn take(object: &mut Object) -> Result<Self, BpfError> {
        Ok(Self {
            keys: object.take_map(map::INSTANCES)?.try_into().map_err(BpfError::read(map::INSTANCES))?,
            wire_stats: object.take_map(map::WIRE_STATS)?.try_into().map_err(BpfError::read(map::WIRE_STATS))?,
            prefixes: object.take_map(map::PREFIXES)?.try_into().map_err(BpfError::read(map::PREFIXES))?,
            targets: Table::new(),
        })
    }

    /// Accepts marks of `instance` made with `key`, and counts what its sessions do.
    ///
    /// # Errors
    /// [`BpfError::Map`], in particular when there are too many instances.
    pub fn add(&mut self, instance: u32, key: &MarkKey) -> Result<(), BpfError> {
        let error = BpfError::write(map::WIRE_STATS);
        let cpus = nr_cpus().map_err(|(_, cause)| error(MapError::IoError(cause)))?;
        let zeros = || PerCpuValues::try_from(vec![WireStats::default(); cpus]).map_err(MapError::IoError);
        patiently(|| self.wire_stats.insert(instance, zeros()?, 0)).map_err(error)?;
        patiently(|| self.keys.insert(instance, key, 0)).map_err(BpfError::write(map::INSTANCES))
    }

    /// Reports, of sessions that `instance` opens from now on, the responses of these targets with their first octets,
    /// and those of all others without. Sessions that are open stay as they are. Each target is there once at most.
    ///
    /// # Errors
    /// [`BpfError::Map`], in particular when there are too many targets; some of them may be in the map then.
    pub fn set_prefixes(&mut self, instance: u32, targets: &[(SocketAddr, Prefix)]) -> Result<(), BpfError> {
        let key = |target: &SocketAddr| PrefixKey {
            address: target.ip().into(),
            instance,
            port: target.port().to_be_bytes(),
            _reserved: [0; 2],
        };
        let wanted = targets.iter().filter(|(_, prefix)| *prefix != Prefix::NONE);
        let wanted: Vec<_> = wanted.map(|(target, prefix)| (key(target), u32::from(prefix.octets()))).collect();
        let known = self.targets.entry(instance).or_default();
        for (key, octets) in &wanted {
            // Before it is in the map, so that nothing is left there that is not known.
            if !known.contains(key) {
                known.push(*key);
            }
            patiently(|| self.prefixes.insert(key, octets, 0)).map_err(BpfError::write(map::PREFIXES))?;
        }
        let is_wanted = |key: &PrefixKey| wanted.iter().any(|(wanted, _)| wanted == key);
        for key in known.iter().filter(|key| !is_wanted(key)) {
            absent_is_fine(patiently(|| self.prefixes.remove(key))).map_err(BpfError::write(map::PREFIXES))?;
        }
        known.retain(is_wanted);
        if known.is_empty() {
            self.targets.remove(&instance);
        }
        Ok(())
    }

    /// Refuses marks of `instance` from now on, and forgets its statistics. Its sessions stay until they are removed.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn remove(&mut self, instance: u32) -> Result<(), BpfError> {
        absent_is_fine(patiently(|| self.keys.remove(&instance))).map_err(BpfError::write(map::INSTANCES))?;
        self.set_prefixes(instance, &[])?;
        absent_is_fine(patiently(|| self.wire_stats.remove(&instance))).map_err(BpfError::write(map::WIRE_STATS))
    }

    /// Returns what the sessions of `instance` did so far, summed over the CPUs; zeros for an unknown one.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn wire_stats(&self, instance: u32) -> Result<WireStats, BpfError> {
        match patiently(|| self.wire_stats.get(&instance, 0)) {
            Ok(values) => Ok(values.iter().fold(WireStats::default(), |mut sum, cpu| {
                sum += *cpu;
                sum
            })),
            Err(MapError::KeyNotFound) => Ok(WireStats::default()),
            Err(error) => Err(BpfError::read(map::WIRE_STATS)(error)),
        }
    }
}
