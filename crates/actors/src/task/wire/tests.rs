use super::*;

fn peer() -> common::Peer {
    let host = common::Host {
        id: "host".to_owned(),
        ip: "::ffff:10.0.0.1".to_owned(),
        port: 4000,
        tcp_port: 4005,
        incarnation: Some(7),
        ..common::Host::default()
    };
    common::Peer {
        id: "peer".to_owned(),
        state: "Succeeded".to_owned(),
        host: Some(host),
        ..common::Peer::default()
    }
}

fn with(change: impl FnOnce(&mut common::Host)) -> Option<Parent> {
    let mut peer = peer();
    change(peer.host.as_mut().unwrap());
    parent(&peer)
}

#[test]
fn parents_are_read_with_canonical_addresses_or_not_at_all() {
    let ours = parent(&peer()).unwrap();
    assert_eq!(ours.grpc, "10.0.0.1:4000".parse().unwrap());
    assert_eq!(ours.vortex, Some("10.0.0.1:4005".parse().unwrap()));
    assert!(ours.ours && ours.complete && ours.info().complete);
    let theirs = with(|host| (host.incarnation, host.tcp_port) = (None, 0)).unwrap();
    assert!(!theirs.ours && !theirs.complete && theirs.vortex.is_none());
    let portless = with(|host| host.tcp_port = 0).unwrap();
    assert!(portless.complete && !portless.info().complete, "it must be asked where its pieces are");
    for change in [
        |host: &mut common::Host| host.ip = "somewhere".to_owned(),
        |host: &mut common::Host| host.port = 0,
        |host: &mut common::Host| host.port = -1,
        |host: &mut common::Host| host.port = 70_000,
    ] {
        assert_eq!(with(change), None);
    }
    assert_eq!(parent(&common::Peer { host: None, ..peer() }), None);
}

#[test]
fn a_schedulers_answers_are_read_arm_by_arm() {
    let answer = |response| AnnouncePeerResponse { response: Some(response), ..Default::default() };
    let (said, _) = from_response(answer(Response::EmptyTaskResponse(sched::EmptyTaskResponse {})));
    assert_eq!(said, [FromScheduler::Empty]);
    let normal = sched::NormalTaskResponse { candidate_parents: vec![peer(), common::Peer::default()] };
    let (said, parents) = from_response(answer(Response::NormalTaskResponse(normal)));
    assert_eq!(parents.len(), 1);
    assert_eq!(said, [FromScheduler::Parents(vec![parents[0].info()])]);
    let lease = ours::Lease {
        id: 3,
        ranges: vec![ours::PieceRange { first: u32::MAX, count: 9 }, ours::PieceRange { first: 1, count: 2 }],
        silence: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
        generation: 5,
    };
    let need = sched::NeedBackToSourceResponse { lease: Some(lease), ..Default::default() };
    let (said, _) = from_response(answer(Response::NeedBackToSourceResponse(need)));
    let [FromScheduler::BackToSource(Some(read))] = &said[..] else { panic!("{said:?}") };
    assert_eq!(read.ranges, [u32::MAX..u32::MAX, 1..3]);
    assert_eq!((read.id, read.silence, read.generation), (3, Duration::from_secs(10), 5));
    let need = sched::NeedBackToSourceResponse::default();
    let (said, _) = from_response(answer(Response::NeedBackToSourceResponse(need)));
    assert_eq!(said, [FromScheduler::BackToSource(None)]);
    let (said, _) = from_response(answer(Response::MetadataOnlyResponse(sched::MetadataOnlyResponse {})));
    assert!(matches!(said[..], [FromScheduler::Refused(_)]));
    assert_eq!(from_response(AnnouncePeerResponse::default()), (Vec::new(), Vec::new()));
}

#[test]
fn facts_ride_beside_any_arm_and_learned_comes_back_as_it_went() {
    let learned = Learned {
        content_length: Some(10),
        piece_length: 4,
        validator: Validator { etag: Some("\"x\"".to_owned()), last_modified: None },
        headers: [("a".to_owned(), "b".to_owned())].into(),
        ranges: Some(true),
        private: true,
    };
    assert_eq!(learned_from(learned_to(&learned)), learned);
    let facts =
        ours::Facts { generation: 1, learned: Some(learned_to(&learned)), first: 2, crcs: vec![5, 6] };
    let response = AnnouncePeerResponse {
        facts: Some(facts),
        response: Some(Response::EmptyTaskResponse(sched::EmptyTaskResponse {})),
    };
    let (said, _) = from_response(response);
    let facts = Facts { generation: 1, learned: Some(learned), first: 2, crcs: vec![Crc(5), Crc(6)] };
    assert_eq!(said, [FromScheduler::Facts(facts), FromScheduler::Empty]);
}

#[test]
fn another_part_is_wanted_in_the_words_of_the_first_registration() {
    let dialogue = Dialogue { host_id: "host".into(), task_id: "task".to_owned(), peer_id: "peer".into() };
    let first = common::Download { url: "http://origin/x".to_owned(), ..common::Download::default() };
    let told = |range| {
        let message = dialogue.wants(first.clone(), range);
        let Some(Request::RegisterPeerRequest(register)) = message.request else { panic!() };
        (message.peer_id, register.download.unwrap().range, register.restate.is_some())
    };
    let range = common::Range { start: 5, length: 7 };
    let peer = "peer".to_owned();
    assert_eq!(told(Some(ByteRange { start: 5, length: 7 })), (peer.clone(), Some(range), false));
    assert_eq!(told(None), (peer, None, false));
}

#[test]
fn everything_told_names_host_task_and_peer() {
    let dialogue = Dialogue { host_id: "host".into(), task_id: "task".to_owned(), peer_id: "peer".into() };
    let geometry = Geometry::new(10, 4).ok();
    let cost = Duration::from_millis(3);
    let failure = |status| Failure {
        kind: damselfly_core::download::FailureKind::Refused,
        message: "no".to_owned(),
        status,
        headers: [("a".to_owned(), "b".to_owned())].into(),
    };
    let finished = |piece, parent| ToScheduler::PieceFinished { piece, crc: Crc(9), parent, cost };
    let messages = [
        ToScheduler::Started,
        ToScheduler::BackToSourceStarted,
        ToScheduler::Learned(Learned::default()),
        ToScheduler::Release(4),
        finished(2, None),
        finished(2, Some("parent".into())),
        ToScheduler::PieceFailed { piece: 1, parent: "parent".into() },
        ToScheduler::OriginFailed(failure(Some(404))),
        ToScheduler::OriginFailed(failure(None)),
        ToScheduler::Reschedule { parents: vec!["parent".into()], description: String::new() },
        ToScheduler::Finished { back_to_source: false },
        ToScheduler::Finished { back_to_source: true },
        ToScheduler::Failed { description: "why".to_owned(), back_to_source: false },
        ToScheduler::Failed { description: "why".to_owned(), back_to_source: true },
    ];
    let told: Vec<_> = messages.iter().map(|message| dialogue.tell(message, geometry).unwrap()).collect();
    for message in &told {
        let names = (message.host_id.as_str(), message.task_id.as_str(), message.peer_id.as_str());
        assert_eq!(names, ("host", "task", "peer"));
    }
    assert!(told[2].learned.is_some() && told[2].request.is_none());
    assert_eq!((told[3].released_lease, &told[3].request), (Some(4), &None));
    let Some(Request::DownloadPieceBackToSourceFinishedRequest(origin)) = &told[4].request else { panic!() };
    let piece = origin.piece.as_ref().unwrap();
    assert_eq!((piece.offset, piece.length, piece.digest.as_str()), (8, 2, "crc32:9"));
    assert!(piece.cost.is_some() && piece.created_at.is_some() && piece.parent_id.is_none());
    let Some(Request::DownloadPieceFinishedRequest(remote)) = &told[5].request else { panic!() };
    assert_eq!(remote.piece.as_ref().unwrap().parent_id.as_deref(), Some("parent"));
    let Some(Request::ReschedulePeerRequest(again)) = &told[9].request else { panic!() };
    assert_eq!((again.candidate_parents.len(), &again.description), (1, &None));
    // A piece without a place cannot be told.
    assert_eq!(dialogue.tell(&finished(3, None), geometry), None);
    assert_eq!(dialogue.tell(&finished(0, None), None), None);
}

#[test]
fn what_is_restated_can_be_read_back() {
    let lease = Lease { id: 1, ranges: vec![2..5, 7..8], silence: Duration::from_secs(12), generation: 3 };
    let mut held = PieceSet::new(9);
    held.insert(8);
    let validator = Validator { etag: None, last_modified: Some("today".to_owned()) };
    let restated = restate(std::slice::from_ref(&lease), &held, 3, &validator);
    assert_eq!(lease_from(restated.leases[0].clone()), lease);
    assert_eq!(PieceSet::from_bytes(&restated.bitmap, 9), held);
    assert_eq!(validator_from(restated.validator.unwrap()), validator);
    assert_eq!(duration_from(duration(Duration::MAX)), None);
}

#[test]
fn dragonflys_scheduler_may_know_the_length() {
    let there = |content_length, piece_count, piece_length| {
        let task = common::Task { content_length, piece_count, ..common::Task::default() };
        geometry_there(&task, piece_length)
    };
    let (four, eight) = (4 << 20, 8 << 20);
    assert_eq!(there(9 << 20, 3, None), Some(Geometry::new(9 << 20, four).unwrap()));
    assert_eq!(there(9 << 20, 2, Some(eight)), Some(Geometry::new(9 << 20, eight).unwrap()));
    assert_eq!(
        there(9 << 20, 0, None),
        Some(Geometry::new(9 << 20, four).unwrap()),
        "pieces not counted yet"
    );
    assert_eq!(there(9 << 20, 2, None), None, "cut otherwise");
    assert_eq!((there(0, 0, None), there(u64::MAX, 0, None)), (None, None), "nobody has told");
}
