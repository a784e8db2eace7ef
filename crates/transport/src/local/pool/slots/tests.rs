use proptest::prelude::*;

use super::*;

const IDLE: Duration = Duration::from_secs(60);
const CHECK: Duration = Duration::from_secs(1);

fn slots(max_connections: usize) -> Slots<u64> {
    let options =
        PoolOptions { max_connections, idle_timeout: IDLE, check_after: CHECK, ..PoolOptions::default() };
    Slots::new(&options)
}

fn at(seconds: u64) -> Tick {
    Tick::default() + Duration::from_secs(seconds)
}

/// Asks for a connection that is to be opened, and opens it.
fn open(slots: &mut Slots<u64>, purpose: Purpose, now: Tick) -> Slot {
    let Ok(Grant::Open(slot)) = slots.ask(purpose, now) else { panic!("to be opened: {slots:?}") };
    let dialled = slots.dial(slot);
    assert!(slots.opened(slot, dialled));
    slot
}

#[test]
fn calls_share_a_connection_and_streams_do_not() {
    let mut slots = slots(3);
    let first = open(&mut slots, Purpose::Call, at(0));
    assert_eq!(slots.ask(Purpose::Call, at(0)), Ok(Grant::Use(first)));
    let stream = open(&mut slots, Purpose::Content, at(0));
    assert_ne!(stream, first);
    assert_eq!(slots.ask(Purpose::Call, at(0)), Ok(Grant::Use(first)));
    let other = open(&mut slots, Purpose::Content, at(0));
    assert_ne!(other, stream);
    // The bound.
    assert!(slots.ask(Purpose::Content, at(0)).is_err());
    assert_eq!(slots.counters(), Counters { opened: 3, reused: 2, ..Counters::default() });
}

#[test]
fn a_burst_of_calls_waits_for_the_connection_that_is_being_opened() {
    let mut slots = slots(2);
    let Ok(Grant::Open(slot)) = slots.ask(Purpose::Call, at(0)) else { panic!("the first") };
    let waiting: Vec<Ticket> =
        (0..CALLS).map(|_| slots.ask(Purpose::Call, at(0)).expect_err("one is under way")).collect();
    assert!(slots.settle(at(0)).is_empty());
    let dialled = slots.dial(slot);
    assert!(slots.opened(slot, dialled));
    let granted = slots.settle(at(0));
    assert_eq!(granted.iter().map(|(ticket, ..)| *ticket).collect::<Vec<_>>(), waiting);
    let (last, shared) = granted.split_last().expect("all of them");
    assert!(shared.iter().all(|(.., grant)| *grant == Grant::Use(slot)));
    // It carries no more than this.
    assert!(matches!(last.2, Grant::Open(_)), "{last:?}");
}

#[test]
fn at_the_bound_a_call_goes_beside_a_stream() {
    let mut slots = slots(1);
    let stream = open(&mut slots, Purpose::Content, at(0));
    assert_eq!(slots.ask(Purpose::Call, at(0)), Ok(Grant::Use(stream)));
    slots.release(stream, Purpose::Content, false, at(0));
    // Its call is still under way.
    let waiting = slots.ask(Purpose::Content, at(0)).expect_err("not idle yet");
    assert!(slots.settle(at(0)).is_empty());
    slots.release(stream, Purpose::Call, false, at(0));
    assert_eq!(slots.settle(at(0)), [(waiting, Purpose::Content, Grant::Use(stream))]);
}

#[test]
fn what_was_idle_for_long_is_checked_and_what_is_fresh_is_not() {
    let mut slots = slots(1);
    let slot = open(&mut slots, Purpose::Call, at(0));
    slots.keep_fresh(slot);
    slots.release(slot, Purpose::Call, false, at(0));
    assert_eq!(slots.ask(Purpose::Call, at(30)), Ok(Grant::Use(slot)));
    assert_eq!(slots.counters().reused, 0);
    slots.release(slot, Purpose::Call, false, at(30));
    assert_eq!(slots.ask(Purpose::Content, at(30)), Ok(Grant::Use(slot)));
    slots.release(slot, Purpose::Content, false, at(30));
    assert_eq!(slots.ask(Purpose::Content, at(31)), Ok(Grant::Check(slot)));
    assert!(slots.passed(slot));
    assert_eq!(slots.counters().reused, 2);
    // Whatever its age.
    slots.release(slot, Purpose::Content, true, at(31));
    assert_eq!(slots.ask(Purpose::Call, at(31)), Ok(Grant::Check(slot)));
    slots.replace(slot);
    let dialled = slots.dial(slot);
    assert!(slots.opened(slot, dialled));
    let counters = Counters { opened: 2, reused: 2, checks_failed: 1, reconnects: 1, ..Counters::default() };
    assert_eq!(slots.counters(), counters);
}

#[test]
fn the_end_of_an_earlier_connection_is_no_news() {
    let mut slots = slots(1);
    let Ok(Grant::Open(slot)) = slots.ask(Purpose::Call, at(0)) else { panic!("the first") };
    let first = slots.dial(slot);
    let second = slots.dial(slot);
    slots.ended(slot, first);
    assert!(slots.opened(slot, second));
    slots.ended(slot, first);
    assert_eq!(slots.connection(slot), Some(second));
    slots.ended(slot, second);
    assert_eq!(slots.connection(slot), None);
    // Its user does not know yet.
    slots.release(slot, Purpose::Call, true, at(0));
    assert_eq!(slots.counters(), Counters { opened: 1, lost: 1, ..Counters::default() });
    let Ok(Grant::Open(again)) = slots.ask(Purpose::Call, at(0)) else { panic!("in its place") };
    let third = slots.dial(again);
    // Before it was told to be open.
    slots.ended(again, third);
    assert!(!slots.opened(again, third));
    let fourth = slots.dial(again);
    assert!(slots.opened(again, fourth));
    assert_eq!(slots.counters().reconnects, 1);
}

#[test]
fn when_the_daemon_is_gone_the_calls_that_waited_hear_it() {
    let mut slots = slots(1);
    let Ok(Grant::Open(slot)) = slots.ask(Purpose::Call, at(0)) else { panic!("the first") };
    let call = slots.ask(Purpose::Call, at(0)).expect_err("one is under way");
    let stream = slots.ask(Purpose::Content, at(0)).expect_err("the bound");
    assert_eq!(slots.failed(slot), [call]);
    let granted = slots.settle(at(0));
    assert!(matches!(granted[..], [(ticket, _, Grant::Open(_))] if ticket == stream), "{granted:?}");
}

/// What happens to a pool; numbers choose among what there is.
#[derive(Clone, Debug)]
enum Step {
    Ask(Purpose),
    /// One that has a grant goes on: opens (or fails to), checks (or fails), or is done (or suspects it).
    GoOn(usize, bool),
    /// One that has a grant gives up.
    Cancel(usize),
    Withdraw(usize),
    Refuse(usize),
    /// A connection ends by itself.
    End(usize),
    /// So many tenths of a second pass.
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let purpose = prop_oneof![3 => Just(Purpose::Call), 2 => Just(Purpose::Content)];
    prop_oneof![
        6 => purpose.prop_map(Step::Ask),
        8 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(which, well)| Step::GoOn(which, well)),
        1 => any::<usize>().prop_map(Step::Cancel),
        1 => any::<usize>().prop_map(Step::Withdraw),
        1 => any::<usize>().prop_map(Step::Refuse),
        1 => any::<usize>().prop_map(Step::End),
        2 => (0_u64..400).prop_map(Step::Pass),
    ]
}

/// A pool's users.
struct World {
    slots: Slots<u64>,
    now: Tick,
    users: Vec<(Grant, Purpose)>,
    waiting: Vec<(Ticket, Purpose)>,
}

impl World {
    fn granted(&mut self, grant: Grant, purpose: Purpose) {
        let slot = grant.slot();
        if let Grant::Use(_) = grant {
            let held = &self.slots.held[&slot];
            let beside = self.users.contains(&(grant, Purpose::Content));
            match purpose {
                Purpose::Content => assert!(self.users.iter().all(|(user, _)| user.slot() != slot)),
                Purpose::Call => assert!(!beside || self.slots.held.len() == self.slots.max),
            }
            assert!(held.connection.is_some() && held.used);
        } else {
            assert!(self.users.iter().all(|(user, _)| user.slot() != slot), "another has it");
        }
        self.users.push((grant, purpose));
    }

    fn go_on(&mut self, which: usize, well: bool) {
        let (grant, purpose) = self.users.swap_remove(which);
        let slot = grant.slot();
        match grant {
            Grant::Open(_) if well => {
                let dialled = self.slots.dial(slot);
                assert!(self.slots.opened(slot, dialled));
                self.users.push((Grant::Use(slot), purpose));
            }
            Grant::Open(_) => {
                let told = self.slots.failed(slot);
                let (calls, others): (Vec<_>, _) =
                    self.waiting.drain(..).partition(|(_, purpose)| *purpose == Purpose::Call);
                self.waiting = others;
                assert_eq!(told, calls.into_iter().map(|(ticket, _)| ticket).collect::<Vec<_>>());
            }
            Grant::Check(_) => {
                let passed = well && self.slots.passed(slot);
                if passed {
                    self.users.push((Grant::Use(slot), purpose));
                } else {
                    self.slots.replace(slot);
                    self.users.push((Grant::Open(slot), purpose));
                }
            }
            Grant::Use(_) => self.slots.release(slot, purpose, !well, self.now),
        }
    }

    fn perform(&mut self, step: &Step) {
        let among = |number: usize, count: usize| (count > 0).then(|| number % count);
        match *step {
            Step::Ask(purpose) => match self.slots.ask(purpose, self.now) {
                Ok(grant) => self.granted(grant, purpose),
                Err(ticket) => self.waiting.push((ticket, purpose)),
            },
            Step::GoOn(number, well) => {
                if let Some(which) = among(number, self.users.len()) {
                    self.go_on(which, well);
                }
            }
            Step::Cancel(number) => {
                if let Some(which) = among(number, self.users.len()) {
                    let (grant, purpose) = self.users.swap_remove(which);
                    self.slots.release(grant.slot(), purpose, false, self.now);
                }
            }
            Step::Withdraw(number) | Step::Refuse(number) => {
                if let Some(which) = among(number, self.waiting.len()) {
                    let (ticket, _) = self.waiting.remove(which);
                    match step {
                        Step::Refuse(_) => self.slots.refuse(ticket),
                        _ => self.slots.withdraw(ticket),
                    }
                }
            }
            Step::End(number) => {
                if let Some(which) = among(number, self.slots.held.len()) {
                    let ending = self.slots.held.iter().nth(which).map(|(slot, held)| (*slot, held.dialled));
                    let (slot, dialled) = ending.expect("counted");
                    self.slots.ended(slot, dialled);
                }
            }
            Step::Pass(tenths) => {
                self.now += Duration::from_millis(100 * tenths);
            }
        }
        self.slots.expire(self.now);
        let mut last = None;
        for (ticket, purpose, grant) in self.slots.settle(self.now) {
            assert!(last.replace(ticket).is_none_or(|last| last < ticket), "first come, first served");
            assert!(self.waiting.contains(&(ticket, purpose)));
            self.waiting.retain(|(waiting, _)| *waiting != ticket);
            self.granted(grant, purpose);
        }
        self.check();
    }

    fn check(&self) {
        let Slots { held, max, queue, .. } = &self.slots;
        assert!(held.len() <= *max);
        assert_eq!(Vec::from(queue.clone()), self.waiting);
        let mut oldest: Option<Tick> = None;
        for (slot, Held { state, connection, dialled, .. }) in held {
            let users: Vec<_> = self.users.iter().filter(|(grant, _)| grant.slot() == *slot).collect();
            match *state {
                State::Opening { .. } | State::Checking { .. } => assert_eq!(users.len(), 1),
                State::Idle { since } => {
                    assert!(users.is_empty());
                    assert!(since + IDLE > self.now, "expired");
                    oldest = Some(oldest.map_or(since, |oldest| oldest.min(since)));
                }
                State::Busy { calls, content } => {
                    assert_eq!(users.len(), calls as usize + usize::from(content));
                    assert!((1..=CALLS + 1).contains(&(calls + u32::from(content))));
                }
            }
            assert_eq!(*connection, (!matches!(state, State::Opening { .. })).then_some(*dialled));
        }
        assert_eq!(self.slots.next_deadline(), oldest.map(|since| since + IDLE));
        // Nobody waits for what is there.
        let any = |is: &dyn Fn(&Held<u64>) -> bool| held.values().any(is);
        let is_idle = any(&|held| matches!(held.state, State::Idle { .. }));
        let has_room = any(&|held| matches!(held.state, State::Busy { calls, .. } if calls < CALLS));
        for (_, purpose) in &self.waiting {
            assert!(!is_idle);
            match purpose {
                Purpose::Content => assert_eq!(held.len(), *max),
                Purpose::Call => {
                    assert!(any(&Held::will_carry_calls) || (held.len() == *max && !has_room));
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn bounds_hold_and_nobody_waits_for_what_is_there(
        max in 1_usize..5,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World { slots: slots(max), now: at(0), users: Vec::new(), waiting: Vec::new() };
        for step in &steps {
            world.perform(step);
        }
        // Everybody ends, and then everything is closed.
        while !world.users.is_empty() {
            world.perform(&Step::GoOn(0, true));
        }
        prop_assert!(world.waiting.is_empty());
        world.perform(&Step::Pass(600));
        prop_assert!(world.slots.held.is_empty());
        prop_assert_eq!(world.slots.next_deadline(), None);
        let Counters { opened, checks_failed, lost, reconnects, evicted, .. } = world.slots.counters();
        prop_assert_eq!(opened, checks_failed + lost + evicted);
        prop_assert!(reconnects <= checks_failed + lost);
    }
}
