//! What makes a parent a good one. Every term lies between 0 and 1.

/// 1 in the same data centre, names compared ignoring case; 0 elsewhere and when one is unknown.
pub(super) fn idc(child: &str, parent: &str) -> f64 {
    if !child.is_empty() && child.eq_ignore_ascii_case(parent) { 1.0 } else { 0.0 }
}

/// How many of the first five `|`-separated parts of the two places agree, as a share; 1 when all of it does.
pub(super) fn location(child: &str, parent: &str) -> f64 {
    if child.is_empty() || parent.is_empty() {
        return 0.0;
    }
    if child.eq_ignore_ascii_case(parent) {
        return 1.0;
    }
    let equal = child
        .split('|')
        .zip(parent.split('|'))
        .take(5)
        .take_while(|(child, parent)| child.eq_ignore_ascii_case(parent))
        .count();
    equal as f64 / 5.0
}

/// The share of its children that a host may still take.
pub(super) fn load(children: u32, limit: u32) -> f64 {
    if limit == 0 { 0.0 } else { 1.0 - f64::from(children.min(limit)) / f64::from(limit) }
}

/// The share of its bandwidth that a host does not use; 0 when it does not tell its bandwidth.
pub(super) fn bandwidth(tx: u64, max_tx: u64) -> f64 {
    if max_tx == 0 { 0.0 } else { 1.0 - tx.min(max_tx) as f64 / max_tx as f64 }
}

/// Observed bytes per second against the fastest host's; the middle when nothing was observed.
pub(super) fn speed(observed: Option<f64>, fastest: f64) -> f64 {
    match observed {
        Some(observed) if fastest > 0.0 => (observed / fastest).clamp(0.0, 1.0),
        _ => 0.5,
    }
}

/// Dragonfly's preference: a seed that still downloads before other hosts, a finished one after them.
pub(super) fn host_type(seed: bool, downloading: bool) -> f64 {
    match (seed, downloading) {
        (false, _) => 0.5,
        (true, true) => 1.0,
        (true, false) => 0.0,
    }
}

/// The terms of one candidate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) idc: f64,
    pub(super) location: f64,
    pub(super) load: f64,
    pub(super) bandwidth: f64,
    pub(super) speed: f64,
    pub(super) host_type: f64,
}

impl Terms {
    /// The score towards a child of ours: what was observed counts as much as what was announced.
    pub(super) fn ours(&self) -> f64 {
        0.35 * self.load + 0.3 * self.speed + 0.2 * self.idc + 0.15 * self.location
    }

    /// The score towards a Dragonfly child, with Dragonfly's weights.
    pub(super) fn dragonfly(&self) -> f64 {
        let load_quality = 0.5 * self.bandwidth + 0.5 * self.load;
        0.6 * load_quality + 0.2 * self.idc + 0.1 * self.location + 0.1 * self.host_type
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(left: f64, right: f64) {
        assert!((left - right).abs() < 1e-9, "{left} is not {right}");
    }

    #[test]
    fn idc_ignores_case_and_the_unknown() {
        close(idc("Frankfurt", "frankfurt"), 1.0);
        close(idc("a", "b"), 0.0);
        close(idc("", ""), 0.0);
    }

    #[test]
    fn location_counts_equal_parts_from_the_left() {
        close(location("eu|de|fra", "EU|DE|FRA"), 1.0);
        close(location("eu|de|fra", "eu|de|ber"), 0.4);
        close(location("eu|x|fra", "eu|y|fra"), 0.2);
        close(location("1|2|3|4|5|6", "1|2|3|4|5|7"), 1.0);
        close(location("", "eu"), 0.0);
    }

    #[test]
    fn load_falls_to_zero_at_the_limit() {
        close(load(0, 200), 1.0);
        close(load(50, 200), 0.75);
        close(load(300, 200), 0.0);
        close(load(0, 0), 0.0);
    }

    #[test]
    fn bandwidth_and_speed_know_the_unknown() {
        close(bandwidth(25, 100), 0.75);
        close(bandwidth(200, 100), 0.0);
        close(bandwidth(0, 0), 0.0);
        close(speed(None, 100.0), 0.5);
        close(speed(Some(50.0), 100.0), 0.5);
        close(speed(Some(500.0), 100.0), 1.0);
    }

    #[test]
    fn an_idle_near_host_scores_like_dragonflys_example() {
        let idle = Terms {
            idc: 1.0,
            location: 0.0,
            load: 1.0,
            bandwidth: 1.0,
            speed: 0.5,
            host_type: host_type(false, false),
        };
        close(idle.dragonfly(), 0.85);
        let busy = Terms { load: 0.0, ..idle };
        assert!(busy.ours() < idle.ours());
        let slow = Terms { speed: 0.0, ..idle };
        assert!(slow.ours() < idle.ours());
    }

    #[test]
    fn a_finished_seed_comes_after_other_hosts() {
        assert!(host_type(true, true) > host_type(false, true));
        assert!(host_type(false, true) > host_type(true, false));
    }
}
