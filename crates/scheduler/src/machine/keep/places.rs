//! Which hosts are to have the replicas of a task. Pure: what is known of hosts goes in, a choice comes out.
//!
//! Replicas are there to outlive failures, and what fails together is near to each other: so they go to where none is
//! before they go to where most room is. A copy that is there already costs nothing and comes before both.

use std::cmp::Reverse;
use std::hash::{DefaultHasher, Hash, Hasher};

use damselfly_core::{HostId, TaskKey};

use super::super::event::HostInfo;
use super::super::scoring;

/// Room on two hosts is told apart in steps of this many bytes: a little more is no reason to send everything there.
const ROUGHLY: u64 = 64 << 30;

/// A host as far as it matters to a replica.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    pub(super) info: &'a HostInfo,
    /// Children that it serves.
    pub(super) children: u32,
    /// It has a whole copy.
    pub(super) copy: bool,
    /// How often it has failed in a row what was ordered about this task.
    pub(super) failures: u32,
}

/// The best place for one more replica beside those on `replicas`: who has not failed, who has a copy, who is far from the
/// others, who has most room; among equals by the task, so that tasks spread.
pub(super) fn best(places: &[Place<'_>], replicas: &[&HostInfo], task: &TaskKey) -> Option<usize> {
    let key = |place: &Place<'_>| {
        let room = Reverse((room(place.info), spread(task, &place.info.id)));
        (place.failures, !place.copy, crowding(place.info, replicas.iter().copied()), room)
    };
    (0..places.len()).min_by_key(|index| key(&places[*index]))
}

/// Which of more replicas than are wanted is one too many: who is near to others, who has least room, who serves most. Only
/// those that `may` go are looked at.
pub(super) fn surplus(
    replicas: &[Place<'_>],
    task: &TaskKey,
    may: impl Fn(&Place<'_>) -> bool,
) -> Option<usize> {
    let key = |index: usize| {
        let place = &replicas[index];
        let others = replicas.iter().map(|place| place.info).filter(|info| info.id != place.info.id);
        let room = Reverse(room(place.info));
        (crowding(place.info, others), room, place.children, spread(task, &place.info.id))
    };
    (0..replicas.len()).filter(|index| may(&replicas[*index])).max_by_key(|index| key(*index))
}

/// How near the nearest of `others` is, and then how near they are together. A host of which nobody knows where it stands is
/// near to nobody.
fn crowding<'a>(host: &HostInfo, others: impl Iterator<Item = &'a HostInfo>) -> (u32, u32) {
    let near = |other: &HostInfo| {
        let same_centre = scoring::idc(&host.idc, &other.idc) > 0.0;
        let fifths = 5.0 * scoring::location(&host.location, &other.location);
        // Nothing is as near as the same data centre.
        u32::from(same_centre) * 6 + fifths.round() as u32
    };
    others.map(near).fold((0, 0), |(nearest, all), near| (nearest.max(near), all + near))
}

fn room(host: &HostInfo) -> u64 {
    host.disk_free.unwrap_or(0) / ROUGHLY
}

fn spread(task: &TaskKey, host: &HostId) -> u64 {
    let mut hasher = DefaultHasher::new();
    (task, host).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::machine::hosts::tests::info;
    use crate::machine::tests::kit::key;

    fn host(name: &str, idc: &str, location: &str, free: u64) -> HostInfo {
        let place = (idc.to_owned(), location.to_owned());
        HostInfo { idc: place.0, location: place.1, disk_free: Some(free * ROUGHLY), ..info(name, Some(1)) }
    }

    fn place(info: &HostInfo) -> Place<'_> {
        Place { info, children: 0, copy: false, failures: 0 }
    }

    fn chosen(places: &[Place<'_>], replicas: &[&HostInfo]) -> String {
        places[best(places, replicas, &key()).unwrap()].info.id.to_string()
    }

    fn too_many(replicas: &[Place<'_>]) -> String {
        replicas[surplus(replicas, &key(), |_| true).unwrap()].info.id.to_string()
    }

    #[test]
    fn a_copy_comes_before_distance_and_distance_before_room() {
        let there = host("there", "x", "eu|fra|1", 1);
        let near = host("near", "x", "eu|fra|1", 100);
        let rack = host("rack", "x", "eu|fra|2", 50);
        let far = host("far", "y", "us|nyc|1", 2);
        let further = host("further", "z", "asia|tyo|1", 3);
        let all = [place(&near), place(&rack), place(&far), place(&further)];
        assert_eq!(chosen(&all, &[]), "near", "the first goes to where most room is");
        assert_eq!(chosen(&all, &[&there]), "further");
        assert_eq!(chosen(&all[..2], &[&there]), "rack");
        assert_eq!(chosen(&all[..2], &[&there, &rack, &further]), "near", "all are taken: room decides");
        let promoted = Place { copy: true, ..place(&near) };
        assert_eq!(chosen(&[promoted.clone(), place(&far)], &[&there]), "near");
        let failed = Place { failures: 1, ..promoted };
        assert_eq!(chosen(&[failed, place(&rack)], &[&there]), "rack", "others are tried first");
        assert_eq!(best(&[], &[], &key()), None);
    }

    #[test]
    fn a_place_with_fewer_replicas_comes_first_where_all_have_some() {
        let [a, b, c] = ["a", "b", "c"].map(|name| host(name, "x", "", 1));
        let y = host("y", "y", "", 1);
        let (more, less) = (host("more", "x", "", 9), host("less", "y", "", 1));
        assert_eq!(chosen(&[place(&more), place(&less)], &[&a, &b, &c, &y]), "less");
    }

    #[test]
    fn what_is_too_much_goes_where_others_are_near_then_where_room_is_least_then_where_most_is_served() {
        let one = host("one", "x", "", 9);
        let two = host("two", "x", "", 8);
        let alone = host("alone", "y", "", 1);
        let replicas = [place(&one), place(&two), place(&alone)];
        assert_eq!(too_many(&replicas), "two");
        assert_eq!(too_many(&[place(&one), place(&alone)]), "alone");
        let twin = host("twin", "x", "", 9);
        let busy = Place { children: 3, ..place(&twin) };
        assert_eq!(too_many(&[place(&one), busy.clone()]), "twin");
        assert_eq!(surplus(&[place(&one), busy], &key(), |place| place.children == 0), Some(0));
    }

    fn any_host(number: usize) -> impl Strategy<Value = HostInfo> {
        let names = ["", "x", "y", "z"];
        (0..4usize, 0..4usize, 0..5u64)
            .prop_map(move |(idc, at, free)| host(&format!("h{number}"), names[idc], names[at], free))
    }

    fn any_hosts() -> impl Strategy<Value = Vec<HostInfo>> {
        (1..9usize).prop_flat_map(|count| (0..count).map(any_host).collect::<Vec<_>>())
    }

    proptest! {
        /// Whatever is known of hosts, the choice does not depend on the order in which they are listed, and a data centre
        /// gets a second replica only when all have one.
        #[test]
        fn replicas_spread_in_any_order(hosts in any_hosts(), wanted in 1..5usize) {
            let choose = |hosts: Vec<&HostInfo>| {
                let mut left = hosts;
                let mut taken: Vec<&HostInfo> = Vec::new();
                while taken.len() < wanted && !left.is_empty() {
                    let places: Vec<_> = left.iter().map(|info| place(info)).collect();
                    let next = best(&places, &taken, &key()).unwrap();
                    taken.push(left.remove(next));
                }
                taken.into_iter().cloned().collect::<Vec<_>>()
            };
            let taken = choose(hosts.iter().collect());
            prop_assert_eq!(&taken, &choose(hosts.iter().rev().collect()));
            let idcs = |hosts: &[HostInfo]| {
                hosts.iter().map(|host| host.idc.clone()).filter(|idc| !idc.is_empty()).collect::<Vec<_>>()
            };
            let mut distinct = idcs(&taken);
            distinct.sort();
            distinct.dedup();
            let mut all = idcs(&hosts);
            all.sort();
            all.dedup();
            let twice = distinct.len() < idcs(&taken).len();
            let unknown = hosts.iter().filter(|host| host.idc.is_empty()).count();
            let unknown_taken = taken.iter().filter(|host| host.idc.is_empty()).count();
            prop_assert!(!twice || (distinct == all && unknown_taken == unknown), "{:?}", taken);
        }
    }
}
