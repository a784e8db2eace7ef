//! The rules that Dragonfly's scheduler has for requests, as far as breaking them would harm here.

use std::net::{IpAddr, SocketAddr};

use damselfly_api::common::v2 as common;
use damselfly_core::geometry::named_piece_length;
use damselfly_core::{Crc, Kind, TaskId, TaskKey};
use tonic::Status;

/// INVALID_ARGUMENT, naming the field and what it must be.
pub(super) fn invalid(field: &str, expected: &str) -> Status {
    Status::invalid_argument(format!("{field}: {expected}"))
}

/// A string that must not be empty.
pub(super) fn given<'a>(field: &str, value: &'a str) -> Result<&'a str, Status> {
    if value.is_empty() { Err(invalid(field, "must not be empty")) } else { Ok(value) }
}

/// The key of a standard task.
pub(super) fn task(field: &str, id: &str) -> Result<TaskKey, Status> {
    task_of(Kind::Standard, field, id)
}

/// The key of a task.
pub(super) fn task_of(kind: Kind, field: &str, id: &str) -> Result<TaskKey, Status> {
    given(field, id)?;
    let id = TaskId::parse(id).map_err(|error| invalid(field, &error.to_string()))?;
    Ok(TaskKey { kind, id })
}

fn port(field: &str, port: i32) -> Result<u16, Status> {
    u16::try_from(port)
        .ok()
        .filter(|port| (1024..65535).contains(port))
        .ok_or_else(|| invalid(field, &format!("must be at least 1024 and below 65535, but is {port}")))
}

/// A host; returns where its gRPC server listens.
pub(super) fn host(host: &common::Host) -> Result<SocketAddr, Status> {
    given("host.id", &host.id)?;
    given("host.hostname", &host.hostname)?;
    if host.r#type > 3 {
        return Err(invalid("host.type", &format!("must be at most 3, but is {}", host.r#type)));
    }
    let ip: IpAddr = host
        .ip
        .parse()
        .map_err(|_| invalid("host.ip", &format!("must be an IP address, but is {:?}", host.ip)))?;
    let address = SocketAddr::new(ip.to_canonical(), port("host.port", host.port)?);
    port("host.download_port", host.download_port)?;
    Ok(address)
}

/// A registration's download.
pub(super) fn download(download: &common::Download) -> Result<(), Status> {
    let url = &download.url;
    if !url.split_once(':').is_some_and(|(scheme, rest)| is_scheme(scheme) && !rest.is_empty()) {
        return Err(invalid("download.url", "must be an absolute URI"));
    }
    for (field, length) in [
        ("download.piece_length", download.piece_length),
        ("download.actual_piece_length", download.actual_piece_length),
    ] {
        if length.is_some_and(|length| length != 0 && named_piece_length(length).is_err()) {
            return Err(invalid(field, "must be between 4 MiB and 64 MiB"));
        }
    }
    if common::Priority::try_from(download.priority).is_err() {
        return Err(invalid("download.priority", "must be a defined level"));
    }
    if download.range.as_ref().is_some_and(|range| range.length == 0) {
        return Err(invalid("download.range.length", "must not be 0"));
    }
    if let Some(ip) = download.remote_ip.as_ref().filter(|ip| !ip.is_empty()) {
        let _: IpAddr = ip.parse().map_err(|_| invalid("download.remote_ip", "must be an IP address"))?;
    }
    Ok(())
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

/// A finished piece; returns its CRC where the digest is one.
pub(super) fn piece(piece: &common::Piece) -> Result<Option<Crc>, Status> {
    if piece.cost.is_none() {
        return Err(invalid("piece.cost", "must be given"));
    }
    if piece.created_at.is_none() {
        return Err(invalid("piece.created_at", "must be given"));
    }
    if piece.parent_id.as_deref() == Some("") {
        return Err(invalid("piece.parent_id", "must not be empty when given"));
    }
    let other = ["md5:", "sha1:", "sha256:", "sha512:", "blake3:"];
    if other.iter().any(|algorithm| piece.digest.starts_with(algorithm)) {
        return Ok(None);
    }
    Crc::parse_piece_digest(&piece.digest).map_err(|error| invalid("piece.digest", &error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good_host() -> common::Host {
        common::Host {
            id: "10.0.0.1-a".into(),
            hostname: "a".into(),
            ip: "10.0.0.1".into(),
            port: 4000,
            download_port: 4000,
            ..Default::default()
        }
    }

    #[test]
    fn a_wrong_host_is_refused_by_field() {
        assert_eq!(host(&good_host()).unwrap(), "10.0.0.1:4000".parse().unwrap());
        type Break = fn(&mut common::Host);
        let broken: [(&str, Break); 7] = [
            ("host.id", |host| host.id.clear()),
            ("host.hostname", |host| host.hostname.clear()),
            ("host.type", |host| host.r#type = 4),
            ("host.ip", |host| host.ip = "a".into()),
            ("host.port", |host| host.port = 80),
            ("host.port", |host| host.port = -1),
            ("host.download_port", |host| host.download_port = 65535),
        ];
        for (field, change) in broken {
            let mut wrong = good_host();
            change(&mut wrong);
            let status = host(&wrong).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().starts_with(field), "{}", status.message());
        }
    }

    #[test]
    fn a_wrong_download_is_refused_by_field() {
        let good = common::Download { url: "https://example.com/a".into(), ..Default::default() };
        assert!(download(&good).is_ok());
        for (field, wrong) in [
            ("download.url", common::Download { url: "/a".into(), ..good.clone() }),
            ("download.url", common::Download { url: String::new(), ..good.clone() }),
            ("download.piece_length", common::Download { piece_length: Some(1), ..good.clone() }),
            ("download.priority", common::Download { priority: 9, ..good.clone() }),
            (
                "download.range.length",
                common::Download { range: Some(common::Range { start: 1, length: 0 }), ..good.clone() },
            ),
            ("download.remote_ip", common::Download { remote_ip: Some("x".into()), ..good.clone() }),
        ] {
            let status = download(&wrong).unwrap_err();
            assert!(status.message().starts_with(field), "{}", status.message());
        }
    }

    #[test]
    fn a_piece_needs_cost_and_time_and_a_digest_that_is_one() {
        let good = common::Piece {
            digest: "crc32:7".into(),
            cost: Some(Default::default()),
            created_at: Some(Default::default()),
            ..Default::default()
        };
        assert_eq!(piece(&good).unwrap(), Some(Crc(7)));
        assert_eq!(piece(&common::Piece { digest: String::new(), ..good.clone() }).unwrap(), None);
        assert_eq!(piece(&common::Piece { digest: "sha1:00".into(), ..good.clone() }).unwrap(), None);
        assert!(piece(&common::Piece { digest: "crc32:x".into(), ..good.clone() }).is_err());
        assert!(piece(&common::Piece { cost: None, ..good.clone() }).is_err());
        assert!(piece(&common::Piece { created_at: None, ..good.clone() }).is_err());
        assert!(piece(&common::Piece { parent_id: Some(String::new()), ..good }).is_err());
    }

    #[test]
    fn task_ids_are_hex() {
        assert!(task("task_id", "abcdef0123").is_ok());
        assert_eq!(task("task_id", "").unwrap_err().message(), "task_id: must not be empty");
        assert!(task("task_id", "../../etc").is_err());
    }
}
