use damselfly_core::Kind;

use super::*;

#[test]
fn size_levels_are_dragonflys() {
    let mib = 1u64 << 20;
    for (bytes, level) in [
        (0, 0),
        (1, 1),
        (mib, 2),
        (4 * mib, 3),
        (8 * mib, 4),
        (512 * mib, 10),
        (1 << 30, 11),
        (4 << 30, 12),
        (512 << 30, 19),
        (1 << 40, 20),
    ] {
        assert_eq!(size_level(bytes), level, "{bytes}");
    }
}

#[test]
fn a_reset_counts_from_zero_and_keeps_the_present() {
    let (metrics, labels) = (Metrics::new(), TaskLabels::default());
    metrics.downloads.get_or_create(&labels).inc();
    metrics.downloading.get_or_create(&labels).inc();
    metrics.called(Call::DeleteHost, &Ok::<(), ()>(()));
    metrics.called(Call::StatLocalTask, &Err::<(), ()>(()));
    let sent = |bytes| UploadFigures { bytes, connections: 1, ..UploadFigures::default() };
    let before = metrics.render((1, 1), sent(10), 0).unwrap();
    for line in [
        "dragonfly_client_upload_traffic 10",
        "dragonfly_client_delete_host_total 1",
        "dragonfly_client_stat_local_task_failure_total{type=\"0\"} 1",
    ] {
        assert!(before.contains(line), "{line} is missing in\n{before}");
    }
    metrics.reset(sent(10));
    let after = metrics.render((1, 1), sent(15), 0).unwrap();
    for line in [
        "dragonfly_client_upload_traffic 5",
        "dragonfly_client_concurrent_download_task_total{",
        "dragonfly_client_delete_host_total 0",
    ] {
        assert!(after.contains(line), "{line} is missing in\n{after}");
    }
    for name in ["download_task_total{", "stat_local_task_failure_total{"] {
        assert!(!after.contains(&format!("dragonfly_client_{name}")), "{name} is still in\n{after}");
    }
}

#[test]
fn names_are_dragonflys() {
    let metrics = Metrics::new();
    metrics.downloads.get_or_create(&TaskLabels::default()).inc();
    metrics.downloaded(Traffic::Origin, 5);
    metrics.origin_request("https").failed();
    metrics.blocked(Kind::Standard);
    let text = metrics.render((10, 2), UploadFigures::default(), 3).unwrap();
    for name in [
        "dragonfly_client_download_task_total{",
        "dragonfly_client_download_traffic{type=\"BACK_TO_SOURCE\"} 5",
        "# TYPE dragonfly_client_download_task_total counter",
        "# HELP dragonfly_client_download_task_total Downloads begun",
        "# TYPE dragonfly_client_download_traffic gauge",
        "dragonfly_client_backend_request_total{scheme=\"https\",method=\"GET\"} 1",
        "dragonfly_client_backend_request_failure_total{scheme=\"https\",method=\"GET\"} 1",
        "dragonfly_client_download_task_blocked_total{type=\"0\"} 1",
        "dragonfly_client_concurrent_upload_piece_total 3",
        "dragonfly_client_disk_usage_space_total 2",
        "dragonfly_client_version{",
    ] {
        assert!(text.contains(name), "{name} is missing in\n{text}");
    }
    assert!(!text.contains("# EOF"), "{text}");
}

#[test]
fn callers_make_no_more_series_than_there_is_room_for() {
    let metrics = Metrics::new();
    let first = metrics.labels(Kind::Standard, "mine", "app", 6);
    for number in 0..10 * LABEL_SETS {
        let labels =
            metrics.labels(Kind::Standard, &number.to_string(), "app", i32::try_from(number).unwrap());
        metrics.downloads.get_or_create(&labels).inc();
    }
    assert_eq!(metrics.labels(Kind::Standard, "mine", "app", 6), first, "who was there first stays");
    let long = "ö".repeat(LABEL_LENGTH);
    let late = metrics.labels(Kind::Standard, &long, &long, 3);
    assert_eq!((late.tag, late.app, late.priority), (String::new(), String::new(), "3".to_owned()));
    let text = metrics.render((1, 1), UploadFigures::default(), 0).unwrap();
    let series = text.matches("dragonfly_client_download_task_total{").count();
    // The surplus goes without tag and application, by priority.
    assert!(series <= LABEL_SETS + 8, "{series}");
    let early = Metrics::new().labels(Kind::Standard, &format!("{long}x"), &long, 3);
    assert_eq!((early.tag, early.app), (long.clone(), long));
}

#[test]
fn local_transfers_are_told_apart_by_flow_and_mode() {
    let metrics = Metrics::new();
    let second = std::time::Duration::from_secs(1);
    metrics.transfers.ended(Flow::Import, Mode::Fd, Some(5), second);
    metrics.transfers.ended(Flow::Export, Mode::Stream, None, second);
    metrics.transfers.resumed(Mode::Fd);
    let text = metrics.render((1, 1), UploadFigures::default(), 0).unwrap();
    for line in [
        "local_transfer_total{flow=\"import\",mode=\"fd\"} 1",
        "local_transfer_bytes_total{flow=\"import\",mode=\"fd\"} 5",
        "local_transfer_retry_total{flow=\"import\",mode=\"fd\"} 1",
        "local_transfer_duration_milliseconds_count{flow=\"import\",mode=\"fd\"} 1",
        "local_transfer_failure_total{flow=\"export\",mode=\"stream\"} 1",
    ] {
        assert!(text.contains(&format!("dragonfly_client_{line}\n")), "{line} is missing in\n{text}");
    }
    metrics.reset(UploadFigures::default());
    let text = metrics.render((1, 1), UploadFigures::default(), 0).unwrap();
    assert!(!text.contains("local_transfer_total{"), "{text}");
}
