//! Which types user space may put into maps.

use crate::{
    capture::{Rule, RuleKey},
    flow::{Flow, IpAddress},
    mark::MarkKey,
    prefix::PrefixKey,
    response::{Session, WireStats},
};

macro_rules! pod {
    ($($type:ty),* $(,)?) => {
        $(
            // SAFETY: the type is `repr(C)`, without padding and valid for every bit pattern: it is `bytemuck::Pod`,
            // which the assertion below holds it to.
            unsafe impl aya::Pod for $type {}
            const _: () = {
                const fn is_bytemuck_pod<T: bytemuck::Pod>() {}
                is_bytemuck_pod::<$type>();
            };
        )*
    };
}

pod!(Flow, IpAddress, MarkKey, PrefixKey, Rule, RuleKey, Session, WireStats);
