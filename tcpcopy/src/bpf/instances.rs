//! The kernel's side of the instances: whose marks it accepts, and what it has seen of each.

use aya::{
    maps::{HashMap, MapData, MapError, PerCpuHashMap, PerCpuValues},
    util::nr_cpus,
};
use tcpcopy_common::{mark::MarkKey, response::WireStats};

use super::{
    error::{BpfError, absent_is_fine},
    names::map,
    object::Object,
};

/// The maps of the instances. Dropping this leaves them to the programs as they are.
pub struct InstanceMaps {
    keys: HashMap<MapData, u32, MarkKey>,
    wire_stats: PerCpuHashMap<MapData, u32, WireStats>,
}

impl InstanceMaps {
    /// Takes the maps out of an object whose programs are loaded.
    pub(super) fn take(object: &mut Object) -> Result<Self, BpfError> {
        Ok(Self {
            keys: object.take_map(map::INSTANCES)?.try_into().map_err(BpfError::read(map::INSTANCES))?,
            wire_stats: object.take_map(map::WIRE_STATS)?.try_into().map_err(BpfError::read(map::WIRE_STATS))?,
        })
    }

    /// Accepts marks of `instance` made with `key`, and counts what its sessions do.
    ///
    /// # Errors
    /// [`BpfError::Map`], in particular when there are too many instances.
    pub fn add(&mut self, instance: u32, key: &MarkKey) -> Result<(), BpfError> {
        let zeros = nr_cpus()
            .map_err(|(_, error)| error)
            .and_then(|cpus| PerCpuValues::try_from(vec![WireStats::default(); cpus]))
            .map_err(|error| BpfError::write(map::WIRE_STATS)(MapError::IoError(error)))?;
        self.wire_stats.insert(instance, zeros, 0).map_err(BpfError::write(map::WIRE_STATS))?;
        self.keys.insert(instance, key, 0).map_err(BpfError::write(map::INSTANCES))
    }

    /// Refuses marks of `instance` from now on, and forgets its statistics. Its sessions stay until they are removed.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn remove(&mut self, instance: u32) -> Result<(), BpfError> {
        absent_is_fine(self.keys.remove(&instance)).map_err(BpfError::write(map::INSTANCES))?;
        absent_is_fine(self.wire_stats.remove(&instance)).map_err(BpfError::write(map::WIRE_STATS))
    }

    /// Returns what the sessions of `instance` did so far, summed over the CPUs; zeros for an unknown one.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn wire_stats(&self, instance: u32) -> Result<WireStats, BpfError> {
        match self.wire_stats.get(&instance, 0) {
            Ok(values) => Ok(values.iter().fold(WireStats::default(), |mut sum, cpu| {
                sum += *cpu;
                sum
            })),
            Err(MapError::KeyNotFound) => Ok(WireStats::default()),
            Err(error) => Err(BpfError::read(map::WIRE_STATS)(error)),
        }
    }
}
