use std::sync::Arc;
use std::time::Duration;

use damselfly_core::task_id::{ContentId, PersistentCacheHasher};
use damselfly_core::{Algorithm, Digest, Hasher, Kind, TaskId, TaskKey};
use proptest::prelude::*;

use super::imports::{assert_clean, check, given, new, write};
use crate::testing::{Bench, bytes, complete, persistent_key};
use crate::{Import, ImportId, NewImport, NewTask, Store, StoreError, UploadName};

/// Bytes of a unit: pieces so short make them so.
const UNIT: usize = 1000;
const HOUR: Duration = Duration::from_secs(3600);

fn name(number: u32) -> UploadName {
    UploadName { uid: 7, name: format!("upload {number}") }
}

/// An upload of content of that length.
fn named(import: NewImport, length: usize) -> NewImport {
    let length = Some(length as u64);
    NewImport { content_length: length, piece_length: Some(UNIT as u64), upload: Some(name(1)), ..import }
}

fn begin(store: &Arc<Store>, import: NewImport, content: &[u8]) -> Import {
    write_on(store.begin_import(import).unwrap(), content, 700)
}

/// Writes what comes after what is written.
fn write_on(mut import: Import, content: &[u8], step: usize) -> Import {
    let written = usize::try_from(import.written()).unwrap();
    content[written..].chunks(step).for_each(|chunk| import.write(chunk).unwrap());
    import
}

fn go_on(store: &Arc<Store>, import: NewImport) -> Import {
    let verified = store.verified_upload(import.upload.as_ref().unwrap());
    store.resume_import(import, verified).unwrap().expect("it can be gone on with")
}

fn kill(store: Arc<Store>, bench: &Bench) -> Arc<Store> {
    store.abandon();
    drop(store);
    bench.open()
}

fn id(of: ContentId, content: &[u8]) -> TaskId {
    let mut hasher = PersistentCacheHasher::new(of);
    hasher.update(content);
    hasher.finish(Some("tag"), None, Some(UNIT as u64)).unwrap()
}

#[test]
fn what_was_cut_off_goes_on_at_its_last_unit() {
    for killed in [false, true] {
        let (bench, content) = (Bench::new(), bytes(1, 5 * UNIT + 5));
        let mut store = bench.open();
        let import = || named(new(), content.len());
        let begun = begin(&store, import(), &content[..2 * UNIT + 600]);
        assert_eq!(store.verified_upload(&name(1)), 2 * UNIT as u64, "also while it is written");
        if killed {
            std::mem::forget(begun);
            store = kill(store, &bench);
        } else {
            drop(begun);
        }
        assert!(store.list().is_empty(), "nothing of it is seen");
        assert_eq!((store.usage().used, store.usage().reserved), (2 * UNIT as u64, 0));
        let begun = write_on(go_on(&store, import()), &content, 999);
        assert_eq!(begun.written(), content.len() as u64);
        assert!(store.list().is_empty());
        let done = begun.finish(None).unwrap();
        assert_eq!(done.content.key().id, id(ContentId::Sha256, &content));
        check(&done.content, &content);
        let meta = done.content.meta();
        assert_eq!((meta.persistent, meta.replica_target, meta.ttl_left), (true, 2, HOUR));
        assert_eq!(store.verified_upload(&name(1)), 0);
        drop(done);
        assert_clean(&bench, &store);
    }
}

#[test]
fn a_digest_is_compared_with_all_of_it() {
    let (bench, content) = (Bench::new(), bytes(1, 3 * UNIT));
    let mut store = bench.open();
    for algorithm in Algorithm::ALL {
        let digest = |bytes: &[u8]| -> Digest {
            let mut hasher = Hasher::new(algorithm);
            hasher.update(bytes);
            hasher.finish().to_string().parse().unwrap()
        };
        for (other, id) in [(true, new()), (false, new()), (true, given(1)), (false, given(2))] {
            drop(begin(&store, named(id.clone(), content.len()), &content[..2 * UNIT]));
            store = kill(store, &bench);
            let begun = write_on(go_on(&store, named(id, content.len())), &content, UNIT);
            let done = begun.finish(Some(&digest(if other { b"other" } else { &content })));
            assert_eq!(matches!(done, Err(StoreError::WrongDigest { .. })), other, "{done:?}");
            assert_eq!(store.verified_upload(&name(1)), 0, "what is wrong is not gone on with");
        }
    }
    assert_eq!(store.list().len(), 2);
    assert_clean(&bench, &store);
}

#[test]
fn who_begins_anew_or_asks_for_something_else_ends_what_was_kept() {
    let (bench, content) = (Bench::new(), bytes(1, 3 * UNIT));
    let store = bench.open();
    let import = || named(new(), content.len());
    let rest = || drop(begin(&store, import(), &content[..2 * UNIT + 1]));
    let verified = || store.verified_upload(&name(1));
    rest();
    drop(store.begin_import(import()).unwrap());
    assert_eq!(verified(), 0, "began anew, and nothing came");

    let other = |change: &dyn Fn(&mut NewImport)| {
        let mut other = import();
        change(&mut other);
        other
    };
    let ids = [ImportId::Content(ContentId::Blake3), ImportId::Given(persistent_key(1).id)];
    let mut others: Vec<_> = ids.into_iter().map(|id| other(&|other| other.id = id.clone())).collect();
    others.push(other(&|other| other.content_length = Some(3 * UNIT as u64 + 1)));
    others.push(other(&|other| other.piece_length = Some(2 * UNIT as u64)));
    others.push(other(&|other| other.new.tag = None));
    others.push(other(&|other| other.new.application = Some("a".to_owned())));
    for other in others {
        rest();
        assert!(store.resume_import(other.clone(), 2 * UNIT as u64).unwrap().is_none(), "{other:?}");
        assert_eq!(verified(), 0, "{other:?}");
    }
    rest();
    for offset in [1, UNIT as u64 + 1, 2 * UNIT as u64 + 1, 3 * UNIT as u64] {
        assert!(store.resume_import(import(), offset).unwrap().is_none(), "{offset}");
    }
    let stranger = NewImport { upload: Some(UploadName { uid: 8, ..name(1) }), ..import() };
    assert_eq!(store.verified_upload(stranger.upload.as_ref().unwrap()), 0);
    assert!(store.resume_import(stranger, 2 * UNIT as u64).unwrap().is_none());
    assert!(store.resume_import(NewImport { upload: None, ..import() }, 2 * UNIT as u64).unwrap().is_none());
    assert_eq!(verified(), 2 * UNIT as u64);

    // How long it lives and how often it is kept is said at the end.
    let ttl = Some(2 * HOUR);
    let other = other(&|other| other.new = NewTask { replica_target: 3, ttl, ..other.new.clone() });
    let done = write_on(go_on(&store, other), &content, 300).finish(None).unwrap();
    let meta = done.content.meta();
    assert_eq!((meta.replica_target, meta.ttl_left), (3, 2 * HOUR));
}

#[test]
fn one_upload_has_one_writer() {
    let (bench, content) = (Bench::new(), bytes(1, 3 * UNIT));
    let store = bench.open();
    let import = || named(new(), content.len());
    let first = begin(&store, import(), &content[..UNIT]);
    for refused in
        [store.begin_import(import()), store.resume_import(import(), UNIT as u64).map(Option::unwrap)]
    {
        assert!(matches!(refused, Err(StoreError::Busy { .. })), "{refused:?}");
    }
    let mut second = named(new(), content.len());
    second.upload = Some(name(2));
    let second = begin(&store, second, &content);
    let done = [write_on(first, &content, 100), second].map(|import| import.finish(None).unwrap().existed);
    assert_eq!(done, [false, true]);
    assert_clean(&bench, &store);
}

#[test]
fn what_is_discarded_leaves_nothing() {
    let (bench, content) = (Bench::new(), bytes(1, 3 * UNIT));
    let store = bench.open();
    begin(&store, named(new(), content.len()), &content[..2 * UNIT]).discard();
    assert_eq!(store.verified_upload(&name(1)), 0);
    let short = begin(&store, named(new(), content.len()), &content[..2 * UNIT]).finish(None).unwrap_err();
    assert!(matches!(short, StoreError::WrongLength { announced: 3000, found: 2000 }), "{short}");
    bench.system.0.lock().fails = Some("flush");
    let failed = begin(&store, named(new(), content.len()), &content).finish(None);
    assert!(matches!(failed, Err(StoreError::Io { .. })), "{failed:?}");
    assert_clean(&bench, &store);
}

#[test]
fn what_is_damaged_is_found_before_it_counts() {
    for import in [new(), given(1)] {
        let (bench, content) = (Bench::new(), bytes(1, 30 * UNIT));
        let store = bench.open();
        let import = || named(import.clone(), content.len());
        drop(begin(&store, import(), &content[..20 * UNIT]));
        let file = bench.dir.path().join("damselfly-v1/imports").read_dir().unwrap();
        let file = file.map(|entry| entry.unwrap().path()).find(|path| path.extension().unwrap() == "data");
        let store = kill(store, &bench);
        let file = std::fs::File::options().write(true).open(file.unwrap()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"damage", 7 * UNIT as u64 + 5).unwrap();
        let mut begun = go_on(&store, import());
        let written = content[20 * UNIT..].chunks(UNIT).try_for_each(|chunk| begun.write(chunk));
        let damaged = written.and_then(|()| begun.finish(None).map(drop)).unwrap_err();
        assert!(matches!(damaged, StoreError::UploadDamaged { verified: 7000 }), "{damaged}");
        assert!(store.list().is_empty());
        assert_eq!(store.verified_upload(&name(1)), 7000);
        check(&write_on(go_on(&store, import()), &content, 333).finish(None).unwrap().content, &content);
        assert_clean(&bench, &store);
    }
}

#[test]
fn a_clean_shutdown_spares_the_comparison_but_not_the_id() {
    let (bench, content) = (Bench::new(), bytes(1, 9 * UNIT));
    let store = bench.open();
    let unfinished = begin(&store, named(new(), content.len()), &content[..4 * UNIT + 1]);
    store.shutdown().unwrap();
    drop((unfinished, store));
    let store = bench.open();
    let done = write_on(go_on(&store, named(new(), content.len())), &content, UNIT).finish(None).unwrap();
    assert_eq!(done.content.key().id, id(ContentId::Sha256, &content));
    check(&done.content, &content);
}

#[test]
fn who_rests_too_long_or_among_too_many_goes() {
    let (bench, content) = (Bench::new(), bytes(1, 3 * UNIT));
    let mut store = bench.open();
    let rest = |store: &Arc<Store>, number| {
        let import = NewImport { upload: Some(name(number)), ..named(new(), content.len()) };
        drop(begin(store, import, &content[..2 * UNIT]));
    };
    let kept = |store: &Arc<Store>| -> Vec<u32> {
        (0..80).filter(|&number| store.verified_upload(&name(number)) > 0).collect()
    };
    for number in 0..70 {
        rest(&store, number);
        bench.system.pass(Duration::from_secs(60));
    }
    assert_eq!(kept(&store), (6..70).collect::<Vec<_>>());
    // Where the last of them is too old too, but for one that was taken up.
    bench.system.pass(23 * HOUR);
    let collected = store.collect(store.now());
    assert_eq!((kept(&store), collected.expired), ((11..70).collect(), Vec::new()), "no task ended");
    let import = NewImport { upload: Some(name(12)), ..named(new(), content.len()) };
    drop(go_on(&store, import));
    store.shutdown().unwrap();
    drop(store);
    bench.system.pass(2 * HOUR);
    store = bench.open();
    assert_eq!(kept(&store), [12]);
    bench.system.pass(23 * HOUR);
    store.collect(store.now());
    assert_eq!(kept(&store), [0; 0]);
    assert_clean(&bench, &store);
}

#[test]
fn what_rests_makes_room_for_others() {
    let mut bench = Bench::new();
    bench.options.capacity = Some(10 * UNIT as u64);
    bench.options.high_percent = 100;
    let (store, content) = (bench.open(), bytes(1, 9 * UNIT));
    let import = || named(new(), content.len());
    let standard = |number| TaskKey { kind: Kind::Standard, ..persistent_key(number) };
    let begun = begin(&store, import(), &content[..4 * UNIT]);
    assert_eq!((store.usage().used, store.usage().reserved), (4 * UNIT as u64, 5 * UNIT as u64));
    let busy = store.get_or_create(&standard(1), NewTask::default()).unwrap();
    busy.set_facts(crate::testing::facts(2 * UNIT as u64, UNIT as u64)).unwrap();
    let full = busy.reserve(&damselfly_core::PieceSet::full(2)).unwrap_err();
    assert!(matches!(full, StoreError::NoSpace { .. }), "what is written has its room: {full}");
    drop(begun);
    complete(&store, &standard(2), &bytes(2, 6 * UNIT), UNIT as u64);
    assert_eq!(store.verified_upload(&name(1)), 4 * UNIT as u64, "the rest was free");
    let pinned = store.get(&standard(2)).unwrap().pin().unwrap();
    let no_room = store.resume_import(import(), 4 * UNIT as u64).unwrap_err();
    assert!(matches!(no_room, StoreError::NoSpace { .. }), "{no_room}");
    assert_eq!(store.verified_upload(&name(1)), 4 * UNIT as u64, "it rests on");
    busy.reserve(&damselfly_core::PieceSet::full(2)).unwrap();
    assert_eq!(store.verified_upload(&name(1)), 0, "evicted");
    assert!(store.collect(store.now()).evicted.is_empty(), "it was no task");
    drop(pinned);
    check(&begin(&store, import(), &content).finish(None).unwrap().content, &content);
    assert_eq!(store.list().len(), 1, "and tasks make room for it");
    assert_clean(&bench, &store);
}

#[test]
fn what_cannot_be_gone_on_with_goes_when_the_store_opens() {
    let (bench, content) = (Bench::new(), bytes(1, 3 * UNIT));
    let mut store = bench.open();
    let nameless = NewImport { upload: None, ..named(new(), content.len()) };
    std::mem::forget(begin(&store, nameless, &content[..2 * UNIT]));
    std::mem::forget(begin(&store, named(new(), content.len()), &content[..UNIT - 1]));
    let dir = bench.dir.path().join("damselfly-v1/imports");
    std::fs::write(dir.join("who knows"), "what").unwrap();
    store = kill(store, &bench);
    assert_clean(&bench, &store);
    // Nor does an upload outlive a store that keeps nothing.
    drop(begin(&store, named(new(), content.len()), &content[..UNIT]));
    drop(store);
    let options = crate::Options { keep: false, ..bench.options.clone() };
    let store = Store::open_on(options, Arc::<crate::testing::Fake>::clone(&bench.system)).unwrap();
    assert_eq!(store.verified_upload(&name(1)), 0);
    assert_clean(&bench, &store);
}

#[test]
fn units_are_never_longer_than_pieces_and_never_too_many() {
    let bench = Bench::new();
    let store = bench.open();
    let begun = |length, piece_length| {
        store.begin_import(NewImport { content_length: Some(length), piece_length, ..named(new(), 0) })
    };
    // Nothing is written: only whether it can be.
    for (length, piece_length) in [(0, None), (1, Some(1)), (1 << 47, None), (100 << 40, Some(64 << 20))] {
        drop(begun(length, piece_length).unwrap());
    }
    for (length, piece_length) in [(1 << 49, Some(4 << 20)), (u64::MAX, None), (u64::MAX, Some(1))] {
        let refused = begun(length, piece_length).unwrap_err();
        assert!(matches!(refused, StoreError::Geometry { .. }), "{refused}");
    }
    let done = begun(0, None).unwrap().finish(None).unwrap();
    assert!(done.content.is_complete());
    drop(done);
    assert_clean(&bench, &store);
}

#[test]
fn a_kill_at_any_step_loses_at_most_the_unit_under_way() {
    let (bench, content) = (Bench::new(), bytes(5, 4 * UNIT + 500));
    let copies = tempfile::tempdir().unwrap();
    let store = bench.open();
    let places = (bench.dir.path().to_owned(), copies.path().to_owned(), 0);
    bench.system.0.lock().snapshots = Some(places);
    let import = || named(given(1), content.len());
    // What is written for sure from that copy on.
    let mut sure = vec![(0, 0)];
    let mut step = |written: usize| {
        let count = bench.system.0.lock().snapshots.as_ref().unwrap().2;
        sure.push((count, written / UNIT * UNIT));
    };
    let mut begun = store.begin_import(import()).unwrap();
    for (at, chunk) in (1..).zip(content[..2 * UNIT + 600].chunks(400)) {
        begun.write(chunk).unwrap();
        step((at * 400).min(2 * UNIT + 600));
    }
    drop(begun);
    let mut begun = go_on(&store, import());
    for (at, chunk) in (1..).zip(content[2 * UNIT..].chunks(400)) {
        begun.write(chunk).unwrap();
        step(2 * UNIT + at * 400);
    }
    begun.finish(None).unwrap();
    let done = bench.system.0.lock().snapshots.take().unwrap().2;
    drop(store);
    let mut seen = [0, 0];
    for number in 0..done {
        let dir = copies.path().join(number.to_string());
        let store = bench.open_at(&dir);
        let there = store.get(&persistent_key(1));
        seen[usize::from(there.is_some())] += 1;
        let verified = store.verified_upload(&name(1));
        let begun = match verified {
            0 => store.begin_import(import()).unwrap(),
            _ => go_on(&store, import()),
        };
        if there.is_none() {
            assert!(store.list().is_empty());
            let at_least = sure.iter().rev().find(|(from, _)| *from <= number).map_or(0, |(_, sure)| *sure);
            assert!(verified >= at_least as u64, "{number}: {verified} of {at_least}");
        }
        check(&write_on(begun, &content, 900).finish(None).unwrap().content, &content);
    }
    assert!(seen[0] > 20 && seen[1] > 0, "{seen:?}");
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    PutDown,
    Kill,
    Shutdown,
    /// The sender goes on so many units earlier.
    Rewind(usize),
    Reboot,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1usize..4 * UNIT).prop_map(Step::Write),
        1 => Just(Step::PutDown),
        1 => Just(Step::Kill),
        1 => Just(Step::Shutdown),
        1 => (0usize..4).prop_map(Step::Rewind),
        1 => Just(Step::Reboot),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn however_it_is_cut_off_it_ends_as_if_it_were_not(
        length in 0usize..20 * UNIT,
        steps in prop::collection::vec(step(), 0..24),
        of in prop::sample::select(vec![None, Some(ContentId::Sha256), Some(ContentId::Blake3)]),
        seed in 0u64..9,
    ) {
        let (bench, content) = (Bench::new(), bytes(seed, length));
        let mut store = bench.open();
        let import = || NewImport { id: of.map_or(given(1).id, ImportId::Content), ..named(new(), length) };
        let mut begun = Some(store.begin_import(import()).unwrap());
        // The model: how much is kept of what was written.
        let kept = |written: usize| if written == length { length } else { written / UNIT * UNIT };
        let mut written = 0;
        for (turn, step) in steps.into_iter().enumerate() {
            let mut rewind = 0;
            match step {
                Step::Write(count) => {
                    let end = length.min(written + count);
                    begun = begun.map(|begun| write_on(begun, &content[..end], 450));
                    written = end;
                    prop_assert_eq!(store.verified_upload(&name(1)), kept(written) as u64);
                    continue;
                }
                Step::PutDown => {}
                Step::Rewind(units) => rewind = units,
                Step::Shutdown => store.shutdown().unwrap(),
                Step::Kill => store.abandon(),
                Step::Reboot => {
                    store.abandon();
                    bench.system.reboot(u8::try_from(turn).unwrap(), Duration::from_secs(60));
                }
            }
            let closed = store.begin_import(NewImport { upload: None, ..import() }).is_err();
            drop(begun.take());
            if closed {
                drop(store);
                store = bench.open();
            }
            prop_assert!(store.list().is_empty());
            written = kept(written);
            prop_assert_eq!(store.verified_upload(&name(1)), written as u64);
            prop_assert_eq!((store.usage().used, store.usage().reserved), (written as u64, 0));
            written = (written / UNIT).saturating_sub(rewind) * UNIT;
            let offset = written as u64;
            begun = Some(match offset {
                0 => store.begin_import(import()).unwrap(),
                _ => store.resume_import(import(), offset).unwrap().unwrap(),
            });
        }
        let done = begun.map(|begun| write_on(begun, &content, 1234).finish(None).unwrap()).unwrap();
        let expected = of.map_or(persistent_key(1).id, |of| id(of, &content));
        prop_assert_eq!(&done.content.key().id, &expected);
        check(&done.content, &content);
        drop(done);
        assert_clean(&bench, &store);
    }
}

#[test]
fn a_pipe_has_no_use_for_a_name() {
    let (bench, content) = (Bench::new(), bytes(1, 3 * UNIT));
    let store = bench.open();
    let piped = || NewImport { content_length: None, ..named(new(), 0) };
    drop(write(store.begin_import(piped()).unwrap(), &content, UNIT));
    assert_eq!(store.verified_upload(&name(1)), 0);
    assert_clean(&bench, &store);
}
