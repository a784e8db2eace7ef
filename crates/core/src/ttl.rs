//! How long content is kept.

use std::ops::RangeInclusive;
use std::time::Duration;

/// For how long a persistent cache task may be asked to be kept. Dragonfly's schedulers take no other time.
pub const PERSISTENT_CACHE_TTL: RangeInclusive<Duration> =
    Duration::from_secs(5 * 60)..=Duration::from_secs(7 * 24 * 3600);
