use std::collections::HashMap;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};

use super::*;

fn env(pairs: &[(&'static str, &'static str)]) -> impl Fn(&str) -> Option<OsString> + use<> {
    let map: HashMap<&'static str, &'static str> = pairs.iter().copied().collect();
    move |name| map.get(name).map(|value| OsString::from(*value))
}

#[test]
fn a_users_files_are_in_the_users_places() {
    let all = env(&[
        ("HOME", "/home/u"),
        ("XDG_CONFIG_HOME", "/c"),
        ("XDG_DATA_HOME", "/d"),
        ("XDG_STATE_HOME", "/s"),
        ("XDG_RUNTIME_DIR", "/run/user/7"),
    ]);
    let expected = Directories {
        config: "/c/dragonfly".into(),
        storage: "/d/dragonfly".into(),
        socket: "/run/user/7/dragonfly/dfdaemon.sock".into(),
        logs: "/s/dragonfly/dfdaemon".into(),
        private_socket_dir: false,
    };
    assert_eq!(Directories::decide(7, all, None), Ok(expected));

    let home = env(&[("HOME", "/home/u"), ("XDG_DATA_HOME", "relative"), ("XDG_RUNTIME_DIR", "")]);
    let expected = Directories {
        config: "/home/u/.config/dragonfly".into(),
        storage: "/home/u/.local/share/dragonfly".into(),
        socket: "/tmp/dragonfly-7/dfdaemon.sock".into(),
        logs: "/home/u/.local/state/dragonfly/dfdaemon".into(),
        private_socket_dir: true,
    };
    assert_eq!(Directories::decide(7, home, None), Ok(expected));

    assert_eq!(Directories::decide(7, |_| None, None), Err(DirectoryError::NoHome));
    let relative = Path::new("here");
    assert_eq!(
        Directories::decide(7, |_| None, Some(relative)),
        Err(DirectoryError::RelativeHome(relative.to_owned()))
    );
    assert_eq!(root().config, Path::new("/etc/dragonfly"));
    assert_eq!(Directories::decide(0, env(&[("HOME", "/root"), ("XDG_DATA_HOME", "/x")]), None), Ok(root()));
}

#[test]
fn clients_try_the_users_socket_then_the_systems() {
    let sockets = client_sockets(7, env(&[("XDG_RUNTIME_DIR", "/run/user/7"), ("HOME", "/h")]));
    assert_eq!(
        sockets,
        [Path::new("/run/user/7/dragonfly/dfdaemon.sock"), Path::new("/var/run/dragonfly/dfdaemon.sock")]
    );
    assert_eq!(client_sockets(0, |_| None), [Path::new("/var/run/dragonfly/dfdaemon.sock")]);
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn addresses_follow_listen_and_join() {
    let route = Some(ip("10.1.1.1"));
    let plain = AddressInputs { route, ..AddressInputs::default() };
    let decide = |inputs| Addresses::decide(inputs).map(|a| (a.bind.to_string(), a.announce.to_string()));
    let is = |bind: &str, announce: &str| Ok((bind.to_owned(), announce.to_owned()));
    assert_eq!(decide(plain), is("127.0.0.1", "127.0.0.1"));
    assert_eq!(decide(AddressInputs { ipv6: true, ..plain }), is("::1", "::1"));
    assert_eq!(decide(AddressInputs { joins: true, ..plain }), is("0.0.0.0", "10.1.1.1"));
    assert_eq!(decide(AddressInputs { joins: true, ipv6: true, ..plain }), is("::", "10.1.1.1"));
    let listen = AddressInputs { listen: Some(ip("10.0.0.9")), ..plain };
    assert_eq!(decide(listen), is("10.0.0.9", "10.0.0.9"));
    assert_eq!(decide(AddressInputs { joins: true, ..listen }), is("10.0.0.9", "10.0.0.9"));
    assert_eq!(
        decide(AddressInputs { host_ip: Some(ip("10.0.0.3")), ..listen }),
        is("10.0.0.9", "10.0.0.9"),
        "a flag comes before the file"
    );
    let any = AddressInputs { listen: Some(ip("0.0.0.0")), ..plain };
    assert_eq!(decide(any), is("0.0.0.0", "10.1.1.1"));
    assert_eq!(decide(AddressInputs { host_ip: Some(ip("10.0.0.3")), ..any }), is("0.0.0.0", "10.0.0.3"));
    assert_eq!(decide(AddressInputs { host_ip: Some(ip("10.0.0.3")), ..plain }), is("0.0.0.0", "10.0.0.3"));
    assert_eq!(
        decide(AddressInputs { joins: true, server_ip: Some(ip("10.0.0.4")), ..plain }),
        is("10.0.0.4", "10.0.0.4")
    );
    assert_eq!(
        decide(AddressInputs { listen: Some(ip("::ffff:10.0.0.9")), ..plain }),
        is("10.0.0.9", "10.0.0.9")
    );
    let lost = AddressInputs { joins: true, route: None, ..plain };
    assert_eq!(decide(lost), Err(AddressError::NoRoute));
    let nowhere = AddressInputs { host_ip: Some(ip("0.0.0.0")), ..plain };
    assert!(matches!(decide(nowhere), Err(AddressError::Unspecified(_))));
}

#[test]
fn the_route_to_loopback_is_loopback() {
    assert_eq!(route_to("127.0.0.1:8002".parse().unwrap()).unwrap(), ip("127.0.0.1"));
}

#[test]
fn schedulers_are_found_in_order_and_the_own_one_runs_when_needed() {
    let join = [Target::parse("10.0.0.1", 8002).unwrap()];
    let file = PathBuf::from("/d.yaml");
    let joined = SchedulerSource::decide(&join, Some("http://m"), Some(file.clone()));
    assert_eq!(joined, SchedulerSource::Join(join.to_vec()));
    let manager = SchedulerSource::decide(&[], Some("http://m"), Some(file.clone()));
    assert_eq!(manager, SchedulerSource::Manager("http://m".to_owned()));
    let dynconfig = SchedulerSource::decide(&[], None, Some(file.clone()));
    assert_eq!(dynconfig, SchedulerSource::Dynconfig(file));
    assert_eq!(SchedulerSource::decide(&[], None, None), SchedulerSource::Own);

    let own: SocketAddr = "10.0.0.1:8002".parse().unwrap();
    let mapped: SocketAddr = "[::ffff:10.0.0.1]:8002".parse().unwrap();
    let other: SocketAddr = "10.0.0.2:8002".parse().unwrap();
    let decide = |flag, source: &SchedulerSource, list: &[SocketAddr]| {
        EmbeddedScheduler::decide(flag, source, own, list)
    };
    assert_eq!(decide(false, &SchedulerSource::Own, &[]), EmbeddedScheduler::Yes);
    assert_eq!(decide(true, &dynconfig, &[]), EmbeddedScheduler::Yes);
    assert_eq!(decide(false, &dynconfig, &[own]), EmbeddedScheduler::No);
    assert_eq!(decide(false, &joined, &[other]), EmbeddedScheduler::No);
    assert_eq!(decide(false, &joined, &[other, own]), EmbeddedScheduler::IfFree(own));
    assert_eq!(decide(false, &joined, &[mapped]), EmbeddedScheduler::IfFree(own));
    assert_eq!(decide(false, &joined, &["10.0.0.1:9".parse().unwrap()]), EmbeddedScheduler::No);
}
