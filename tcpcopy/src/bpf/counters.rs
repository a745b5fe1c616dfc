//! Reading the programs' counters.

use std::{borrow::Borrow, marker::PhantomData};

use aya::maps::{MapData, PerCpuArray};
use tcpcopy_common::{
    counters::{CaptureCounter, TargetCounter},
    figures::{Family, Value, Visit},
};

use super::{
    error::{BpfError, patiently},
    names::map,
    object::Object,
};

/// A set of counters that a program keeps in a per-CPU array, indexed by the enum.
pub trait Counter: Copy + 'static {
    /// All of them, in the order of the array.
    const ALL: &'static [Self];
    /// Their declarations, in the same order.
    const FAMILIES: &'static [Family];

    /// Returns the index in the array.
    fn index(self) -> u32;
}

impl Counter for CaptureCounter {
    const ALL: &'static [Self] = Self::ALL;
    const FAMILIES: &'static [Family] = Self::FAMILIES;

    fn index(self) -> u32 {
        self as u32
    }
}

impl Counter for TargetCounter {
    const ALL: &'static [Self] = Self::ALL;
    const FAMILIES: &'static [Family] = Self::FAMILIES;

    fn index(self) -> u32 {
        self as u32
    }
}

/// The values of a set of counters, summed over the CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CounterValues<C> {
    values: Vec<u64>,
    set: PhantomData<C>,
}

impl<C: Counter> CounterValues<C> {
    /// Reads the array `map` of an object.
    pub(super) fn of(object: &Object, map: &'static str) -> Result<Self, BpfError> {
        let array: PerCpuArray<&MapData, u64> = object.map(map)?.try_into().map_err(BpfError::read(map))?;
        Self::read(map, &array)
    }

    fn read(map: &'static str, array: &PerCpuArray<impl Borrow<MapData>, u64>) -> Result<Self, BpfError> {
        let values = C::ALL
            .iter()
            .map(|counter| {
                let values = patiently(|| array.get(&counter.index(), 0)).map_err(BpfError::read(map))?;
                Ok(values.iter().sum())
            })
            .collect::<Result<_, BpfError>>()?;
        Ok(Self { values, set: PhantomData })
    }

    /// Returns the value of one counter.
    #[must_use]
    pub fn get(&self, counter: C) -> u64 {
        self.values.get(counter.index() as usize).copied().unwrap_or_default()
    }

    /// Hands out every counter.
    pub fn visit(&self, visitor: &mut dyn Visit) {
        for (counter, family) in C::ALL.iter().zip(C::FAMILIES) {
            visitor.figure(family, &[], Value::Number(self.get(*counter)));
        }
    }

    /// Returns all counters with their values, in the order of the enum.
    pub fn iter(&self) -> impl Iterator<Item = (C, u64)> + '_ {
        C::ALL.iter().copied().zip(self.values.iter().copied())
    }
}

/// The counters of the target's programs. Any number of threads may read them.
pub struct TargetCounters(PerCpuArray<MapData, u64>);

impl TargetCounters {
    /// Takes the map out of an object whose programs are loaded.
    pub(super) fn take(object: &mut Object) -> Result<Self, BpfError> {
        let map = object.take_map(map::TARGET_COUNTERS)?;
        Ok(Self(map.try_into().map_err(BpfError::read(map::TARGET_COUNTERS))?))
    }

    /// Returns what the programs have counted so far.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn read(&self) -> Result<CounterValues<TargetCounter>, BpfError> {
        CounterValues::read(map::TARGET_COUNTERS, &self.0)
    }
}

impl<C> Default for CounterValues<C> {
    fn default() -> Self {
        Self { values: Vec::new(), set: PhantomData }
    }
}
