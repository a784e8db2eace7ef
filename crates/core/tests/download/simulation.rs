//! How long downloads take, and that they end, in the simulated swarm.

use std::time::Duration;

use damselfly_core::download::{Config, Outcome};
use proptest::prelude::*;

use crate::script::{PIECE, ms};
use crate::simulator::{Behaviour, SchedulerWay, World};

const MB: f64 = 1e6;

fn closed() -> Behaviour {
    Behaviour { rate: 0.0, ..Behaviour::good(0.0) }
}

/// The makespan over bytes ÷ sum of rates, and the bytes received over the content's.
fn overhead(pieces: u32, parents: Vec<Behaviour>) -> (f64, f64) {
    let total: f64 = parents.iter().map(|parent| parent.rate).sum();
    let mut world = World::new(Config::default(), pieces, parents, closed(), SchedulerWay::ParentsOnly);
    let took = world.run(Duration::from_secs(600)).expect("it ends");
    assert_eq!(world.t.finished, Some(Outcome::Done));
    let bytes = f64::from(pieces) * PIECE as f64;
    (took.as_secs_f64() / (bytes / total), world.received as f64 / bytes)
}

#[test]
fn unequal_parents_are_used_to_the_full() {
    for in_order in [true, false] {
        for latency in [1, 20] {
            let parent = |rate| Behaviour { in_order, latency: ms(latency), ..Behaviour::good(rate) };
            for (pieces, fast, slow) in
                [(64, 100.0, 10.0), (64, 10.0, 1.0), (64, 20.0, 20.0), (128, 200.0, 20.0)]
            {
                let (time, bytes) = overhead(pieces, vec![parent(slow * MB), parent(fast * MB)]);
                println!(
                    "{fast}:{slow} in_order={in_order} {latency} ms: {time:.3} × time, {bytes:.3} × bytes"
                );
                assert!(time <= 1.15, "{fast}:{slow} in_order={in_order} {latency} ms: {time:.3}");
                assert!(bytes <= 1.10, "{fast}:{slow} in_order={in_order} {latency} ms: {bytes:.3}");
            }
        }
    }
}

#[test]
fn many_parents_of_all_speeds_too() {
    let rates = [50.0, 30.0, 20.0, 10.0, 5.0, 2.0, 1.0];
    let (time, bytes) = overhead(64, rates.iter().map(|rate| Behaviour::good(rate * MB)).collect());
    println!("{time:.3} × time, {bytes:.3} × bytes");
    assert!(time <= 1.2, "{time:.3}");
}

#[test]
fn a_parent_that_drops_to_zero_has_its_pieces_asked_elsewhere_within_a_second() {
    for (quiet, other) in [(30.0, 10.0), (10.0, 30.0), (50.0, 10.0)] {
        let dropping = Behaviour { mute: Some((ms(1000), ms(600_000))), ..Behaviour::good(quiet * MB) };
        let parents = vec![dropping, Behaviour::good(other * MB)];
        let mut world = World::new(Config::default(), 64, parents, closed(), SchedulerWay::ParentsOnly);
        world.run(Duration::from_secs(300)).expect("it ends");
        assert_eq!(world.t.finished, Some(Outcome::Done));
        assert!(!world.stranded.is_empty(), "something was in flight when it fell silent");
        for piece in &world.stranded {
            let again = world.log.iter().find(|(at, same, parent)| {
                same == piece && *at > ms(1000) && parent.as_ref().is_some_and(|id| id.as_str() == "p1")
            });
            let Some((at, ..)) = again else { panic!("piece {piece} was not asked for elsewhere") };
            assert!(*at <= ms(2000), "{quiet}:{other} piece {piece}: {at:?} of {:?}", world.stranded);
        }
    }
}

#[test]
fn a_lone_host_keeps_the_origins_pipe_full() {
    let mut world =
        World::new(Config::default(), 64, vec![], Behaviour::good(100.0 * MB), SchedulerWay::Leases);
    let took = world.run(Duration::from_secs(60)).expect("it ends");
    let ideal = 64.0 * PIECE as f64 / (100.0 * MB);
    assert!(took.as_secs_f64() <= 1.05 * ideal, "{took:?} against {ideal:.2} s");
    assert_eq!(world.received, 64 * PIECE, "every byte once");
}

#[test]
fn pieces_that_a_parent_claims_and_has_not_cost_no_time() {
    for lies in [2, 3, 7] {
        // It goes on telling of its pieces: nothing but its answers shows that there is nothing to hope for.
        let liar = Behaviour { lies: Some(lies), ..Behaviour::good(100.0 * MB) };
        let origin = Behaviour::good(100.0 * MB);
        let mut world = World::new(Config::default(), 32, vec![liar], origin, SchedulerWay::OnDemand);
        let took = world.run(Duration::from_secs(60)).expect("it ends");
        assert_eq!(world.t.finished, Some(Outcome::Done));
        let ideal = 32.0 * PIECE as f64 / (100.0 * MB);
        assert!(took.as_secs_f64() <= ideal + 0.5, "every {lies}th: {took:?} against {ideal:.2} s");
        assert!(world.denials() <= 4, "every {lies}th: asked {} times", world.denials());
    }
}

#[test]
fn a_growing_sibling_is_followed_closely() {
    let sibling = Behaviour { growth: ms(100), ..Behaviour::good(200.0 * MB) };
    let mut world = World::new(Config::default(), 64, vec![sibling], closed(), SchedulerWay::ParentsOnly);
    let took = world.run(Duration::from_secs(60)).expect("it ends");
    assert!(took <= ms(6400 + 200), "{took:?}");
}

fn behaviour() -> impl Strategy<Value = Behaviour> {
    let rare = |odds: u32| proptest::option::weighted(1.0 / f64::from(odds), 2u32..9);
    (
        1.0..200.0f64,
        1u64..150,
        any::<bool>(),
        proptest::option::weighted(0.3, (0u64..5000, 200u64..200_000)),
        (rare(4), rare(3), rare(4)),
        any::<bool>(),
        0u64..300,
    )
        .prop_map(|(rate, latency, in_order, mute, (wrong, breaks, lies), loses_watch, growth)| {
            Behaviour {
                rate: rate * MB,
                latency: ms(latency),
                in_order,
                mute: mute.map(|(from, length)| (ms(from), ms(from + length))),
                wrong,
                breaks,
                lies,
                loses_watch,
                growth: ms(growth / 2),
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(96)))]

    /// Whatever the others do: with one good source the download completes.
    #[test]
    fn one_good_source_is_enough(
        bad in proptest::collection::vec(behaviour(), 0..6),
        good_is_origin in any::<bool>(),
        way in 0..6,
        pieces in 1u32..60,
        seed in any::<u64>(),
    ) {
        let mut parents = bad;
        let mut origin = closed();
        let mut scheduler = match way {
            0 => SchedulerWay::ParentsOnly,
            1 => SchedulerWay::Leases,
            2 => SchedulerWay::Absent,
            3 => SchedulerWay::Silent,
            4 => SchedulerWay::OnDemand,
            _ => SchedulerWay::Flaky(ms(1500)),
        };
        if good_is_origin {
            origin = Behaviour::good(20.0 * MB);
        } else {
            parents.push(Behaviour::good(20.0 * MB));
            // Somebody has to name the parents, and a dead origin is not leased out.
            scheduler = SchedulerWay::ParentsOnly;
        }
        let config = Config { fingerprint: seed, ..Config::default() };
        let mut world = World::new(config, pieces, parents, origin, scheduler);
        let took = world.run(Duration::from_secs(900));
        prop_assert!(took.is_some(), "{}", world.t.machine.situation());
        prop_assert_eq!(world.t.finished.clone(), Some(Outcome::Done), "{:?}", world.t.failed);
        // At 250 ms, 500 ms, ... and then every five seconds it may announce again what it does not have.
        let most = 8 + usize::try_from(took.unwrap().as_secs() / 5).unwrap();
        prop_assert!(world.denials() <= most, "asked {} times in {took:?}", world.denials());
    }
}
