//! The manifests: what Kubernetes says of them, what our programs say, and whether they agree with each other.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use damselfly_actors::config::{Config, Directories, Loaded, client_sockets};
use damselfly_actors::daemon::LONGEST_END;
use damselfly_cli::dfcache::args::{Command, Import, TransferMode};
use damselfly_deploy_check::deploy;
use damselfly_deploy_check::manifest::{self, ManifestError, Object, containers, volume_at};
use damselfly_deploy_check::program::{CommandError, Program};
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, PodSpec, Probe, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

const DAEMON: &str = "dfdaemon.yaml";
/// Those with a container that imports.
const CLIENTS: [&str; 2] = ["import-socket.yaml", "import-path-mapping.yaml"];
/// What a pod finds in place of its own or its node's address.
const ADDRESS: &str = "192.0.2.7";

fn text(name: &str) -> String {
    fs::read_to_string(deploy().join("kubernetes").join(name)).unwrap()
}

fn objects(name: &str) -> Vec<Object> {
    manifest::read(&text(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
}

/// Every manifest with its objects.
fn all() -> Vec<(String, Vec<Object>)> {
    let files = fs::read_dir(deploy().join("kubernetes")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.map(|name| (name.clone(), objects(&name))).collect()
}

fn pods() -> Vec<(String, PodSpec)> {
    let pods = |(name, objects): (String, Vec<Object>)| -> Vec<_> {
        objects.iter().filter_map(Object::pod).map(|pod| (name.clone(), pod.clone())).collect()
    };
    all().into_iter().flat_map(pods).collect()
}

/// The pod of the container with this name, and the container.
fn pod_of(manifest: &str, container: &str) -> (PodSpec, Container) {
    let objects = objects(manifest);
    let pods = objects.iter().filter_map(Object::pod);
    let found = pods.flat_map(|pod| pod.containers.iter().map(move |own| (pod, own)));
    let (pod, own) = found.into_iter().find(|(_, own)| own.name == container).expect("it is there");
    (pod.clone(), own.clone())
}

fn command(container: &Container) -> Result<Program, CommandError> {
    let value = |variable: &EnvVar| match (&variable.value, &variable.value_from) {
        (Some(value), None) => value.clone(),
        (None, Some(source)) => {
            let field = source.field_ref.as_ref().expect("only fields are taken here");
            assert!(["status.podIP", "status.hostIP"].contains(&field.field_path.as_str()), "{field:?}");
            ADDRESS.to_owned()
        }
        _ => panic!("{}: no value, or two", variable.name),
    };
    let environment: Vec<_> =
        container.env.iter().flatten().map(|variable| (variable.name.clone(), value(variable))).collect();
    let line: Vec<_> = container.command.iter().chain(&container.args).flatten().cloned().collect();
    Program::read(&line, &environment)
}

fn import(manifest: &str) -> Import {
    let (_, container) = pod_of(manifest, "import");
    match command(&container).unwrap_or_else(|why| panic!("{manifest}: {why}")) {
        Program::Cache(args) => match args.command {
            Command::Import(import) => import,
            other => panic!("{manifest} does not import: {other:?}"),
        },
        other => panic!("{manifest} does not run dfcache: {other:?}"),
    }
}

/// The daemon's configuration, and what the daemon would warn of.
fn configuration(objects: &[Object]) -> Loaded {
    let file = |map: &ConfigMap| map.data.as_ref()?.get("dfdaemon.yaml").cloned();
    let source = objects.iter().find_map(|object| match object {
        Object::ConfigMap(map) => file(map),
        _ => None,
    });
    let Program::Daemon(args) = command(&pod_of(DAEMON, "dfdaemon").1).unwrap() else {
        panic!("no dfdaemon")
    };
    let places = Directories::decide(0, |_| None, None).unwrap();
    let (file, overrides) = (Path::new("dfdaemon.yaml"), args.overrides().unwrap());
    Config::parse(&source.expect("it is there"), file, &overrides, places)
        .unwrap_or_else(|why| panic!("{why}"))
}

fn scheduler(objects: &[Object]) -> Service {
    let services = objects.iter().filter_map(|object| match object {
        Object::Service(service) => Some((**service).clone()),
        _ => None,
    });
    let services: Vec<_> = services.collect();
    let [service] = &services[..] else { panic!("{services:?}") };
    service.clone()
}

fn port(container: &Container, name: &str) -> i32 {
    let port = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
    port.unwrap_or_else(|| panic!("{} has no port {name}", container.name)).container_port
}

fn host_path(pod: &PodSpec, container: &Container, path: &str) -> String {
    let volume = volume_at(pod, container, path).unwrap_or_else(|| panic!("nothing is mounted at {path}"));
    volume.host_path.as_ref().unwrap_or_else(|| panic!("{path} is not the node's")).path.clone()
}

#[test]
fn every_manifest_is_what_the_schema_says() {
    let all = all();
    let names: Vec<_> = all.iter().map(|(name, _)| name.as_str()).collect();
    for expected in CLIENTS.into_iter().chain([DAEMON]) {
        assert!(names.contains(&expected), "{names:?}");
    }
    assert!(all.iter().all(|(_, objects)| !objects.is_empty()));
}

#[test]
fn what_the_schema_does_not_say_is_refused() {
    let good = text(DAEMON);
    let refused = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        manifest::read(&good.replacen(from, to, 1)).expect_err(to)
    };
    let differences = |from: &str, to: &str| match refused(from, to) {
        ManifestError::Schema { differences, .. } => differences,
        other => panic!("{to}: {other}"),
    };
    assert_eq!(
        differences("hostNetwork: true", "hostNetwrok: true"),
        [".spec.template.spec.hostNetwrok is no field, or has no value"]
    );
    assert_eq!(
        differences("            periodSeconds: 2\n", "            periodSecond: 2\n"),
        [".spec.template.spec.containers[0].startupProbe.periodSecond is no field, or has no value"]
    );
    assert_eq!(
        differences(
            "          image: damselfly:latest\n",
            "          hostNetwork: true\n          image: x\n"
        ),
        [".spec.template.spec.containers[0].hostNetwork is no field, or has no value"]
    );
    let selector = "  selector:\n    matchLabels:\n      app.kubernetes.io/name: dfdaemon\n";
    assert_eq!(differences(selector, ""), [".spec.selector is missing"]);
    let other = refused("containerPort: 4000", "containerPort: grpc");
    assert!(matches!(other, ManifestError::Type { .. }), "{other}");
    let other = refused("kind: DaemonSet", "kind: DaemonSets");
    assert!(matches!(other, ManifestError::Kind { .. }), "{other}");
    let other = refused("hostNetwork: true", "hostNetwork: true\n      hostNetwork: true");
    assert!(matches!(other, ManifestError::Yaml(_)), "{other}");
}

#[test]
fn what_is_mounted_is_there() {
    for (name, pod) in pods() {
        let volumes: BTreeSet<_> = pod.volumes.iter().flatten().map(|volume| &volume.name).collect();
        let mounts = containers(&pod).flat_map(|container| container.volume_mounts.iter().flatten());
        let mounted: BTreeSet<_> = mounts.map(|mount| &mount.name).collect();
        assert_eq!(volumes, mounted, "{name}");
    }
}

#[test]
fn selectors_find_their_pods() {
    let objects = objects(DAEMON);
    let mut labelled = Vec::new();
    for object in &objects {
        let (selector, template) = match object {
            Object::DaemonSet(set) => set.spec.as_ref().map(|spec| (&spec.selector, &spec.template)).unwrap(),
            Object::Deployment(set) => {
                set.spec.as_ref().map(|spec| (&spec.selector, &spec.template)).unwrap()
            }
            _ => continue,
        };
        let labels = template.metadata.as_ref().and_then(|metadata| metadata.labels.clone()).unwrap();
        assert_eq!(selector.match_labels, Some(labels.clone()));
        labelled.push((labels, template.spec.clone().unwrap()));
    }
    assert_eq!(labelled.len(), 2);
    let service = scheduler(&objects).spec.unwrap();
    let selector = service.selector.unwrap();
    let chosen: Vec<_> = labelled.iter().filter(|(labels, _)| *labels == selector).collect();
    let [(_, pod)] = chosen[..] else { panic!("the service chooses {chosen:?}") };
    let ports: Vec<_> = service.ports.iter().flatten().map(|port| port.port).collect();
    assert_eq!(ports, [port(&pod.containers[0], "grpc")]);
}

#[test]
fn programs_take_their_commands() {
    // The image has the usual programs too; what one of ours is to do, it must understand.
    let mut ours = 0;
    for (name, pod) in pods() {
        for container in containers(&pod) {
            match command(container) {
                Ok(_) => ours += 1,
                Err(CommandError::Unknown(program)) => assert_eq!(program.as_deref(), Some("dd"), "{name}"),
                Err(why) => panic!("{name}, {}: {why}", container.name),
            }
        }
    }
    assert_eq!(ours, 2 + CLIENTS.len());

    let (_, daemon) = pod_of(DAEMON, "dfdaemon");
    let with = |change: fn(&mut Container)| {
        let mut container = daemon.clone();
        change(&mut container);
        command(&container).expect_err("wrong")
    };
    let misspelt = with(|daemon| daemon.command.as_mut().unwrap()[2] = "--joyn".to_owned());
    assert!(matches!(misspelt, CommandError::Usage(_)), "{misspelt}");
    let unknown = with(|daemon| daemon.env.as_mut().unwrap()[0].name = "DFDAEMON_LISTENS".to_owned());
    assert!(matches!(unknown, CommandError::Variable(_)), "{unknown}");
    let malformed = with(|daemon| {
        let variable = &mut daemon.env.as_mut().unwrap()[0];
        (variable.value, variable.value_from) = (Some("node-1".to_owned()), None);
    });
    assert!(matches!(malformed, CommandError::Usage(_)), "{malformed}");
}

#[test]
fn the_daemon_takes_its_configuration() {
    let Loaded { config, warnings, .. } = configuration(&objects(DAEMON));
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(config.listen.map(|ip| ip.to_string()).as_deref(), Some(ADDRESS));
    let (_, daemon) = pod_of(DAEMON, "dfdaemon");
    let ports = [
        ("grpc", config.upload.listen.port),
        ("metrics", config.metrics.port),
        ("health", config.health.port),
        ("pieces", config.storage.tcp.port),
    ];
    for (name, own) in ports {
        assert!(own.named, "{name} could give way to a free one");
        assert_eq!(i32::from(own.number), port(&daemon, name), "{name}");
    }

    let misspelt = text(DAEMON).replacen("pathRoots:", "pathRoot:", 1);
    let Loaded { warnings, .. } = configuration(&manifest::read(&misspelt).unwrap());
    let [warning] = &warnings[..] else { panic!("{warnings:?}") };
    assert_eq!(warning.key, "download.server.pathRoot");
}

#[test]
fn the_daemon_joins_the_service() {
    let objects = objects(DAEMON);
    let Loaded { config, .. } = configuration(&objects);
    let service = scheduler(&objects);
    let name = format!("{}.{}.svc", service.metadata.name.unwrap(), service.metadata.namespace.unwrap());
    let port = service.spec.unwrap().ports.unwrap()[0].port;
    let joined: Vec<_> = config.join.iter().map(|target| (&*target.host, i32::from(target.port))).collect();
    assert_eq!(joined, [(&*name, port)]);

    let (pod, scheduler) = pod_of(DAEMON, "dfscheduler");
    let Program::Scheduler(args) = command(&scheduler).unwrap() else { panic!("no dfscheduler") };
    let listen = args.listen.expect("not loopback");
    assert_eq!((listen.ip().to_string(), i32::from(listen.port())), (ADDRESS.to_owned(), port));
    assert_ne!(pod.host_network, Some(true), "the name finds pods");
}

#[test]
fn probes_ask_what_answers() {
    let (_, daemon) = pod_of(DAEMON, "dfdaemon");
    for probe in [&daemon.startup_probe, &daemon.readiness_probe, &daemon.liveness_probe] {
        let asked = probe.as_ref().and_then(|probe: &Probe| probe.http_get.as_ref()).expect("over HTTP");
        assert_eq!(asked.path.as_deref(), Some("/healthy"));
        assert_eq!(asked.port, IntOrString::String("health".to_owned()));
    }
    let (_, scheduler) = pod_of(DAEMON, "dfscheduler");
    for probe in [&scheduler.readiness_probe, &scheduler.liveness_probe] {
        let asked = probe.as_ref().and_then(|probe| probe.grpc.as_ref()).expect("over gRPC");
        assert_eq!(asked.port, port(&scheduler, "grpc"));
    }
}

#[test]
fn the_daemon_has_time_to_end() {
    let (pod, _) = pod_of(DAEMON, "dfdaemon");
    let given = u64::try_from(pod.termination_grace_period_seconds.expect("given")).unwrap();
    assert!(Duration::from_secs(given) > LONGEST_END);
}

#[test]
fn clients_find_the_daemons_socket() {
    let (pod, daemon) = pod_of(DAEMON, "dfdaemon");
    let socket = configuration(&objects(DAEMON)).config.download.socket;
    let directory = socket.parent().and_then(Path::to_str).unwrap();
    let place = host_path(&pod, &daemon, directory);
    for manifest in CLIENTS {
        let (pod, client) = pod_of(manifest, "import");
        assert_eq!(host_path(&pod, &client, directory), place, "{manifest}");
        // Where a client looks for it when no endpoint is named.
        assert_eq!(import(manifest).endpoint, None);
        assert!(client_sockets(65532, |_| None).contains(&socket));
    }
}

#[test]
fn an_import_over_the_socket_needs_nothing_else() {
    let import = import("import-socket.yaml");
    assert_eq!(import.transfer, Some(TransferMode::Auto));
    let (pod, client) = pod_of("import-socket.yaml", "import");
    let directory = import.path.parent().and_then(Path::to_str).unwrap();
    let data = volume_at(&pod, &client, directory).expect("mounted");
    assert!(data.empty_dir.is_some(), "a file that no daemon can see");
}

#[test]
fn a_mapped_path_is_one_that_the_daemon_may_open() {
    let import = import("import-path-mapping.yaml");
    assert_eq!(import.transfer, Some(TransferMode::Path));
    let (pod, client) = pod_of("import-path-mapping.yaml", "import");
    let line = client.command.clone().unwrap();
    let mapping = line.windows(2).find(|words| words[0] == "--path-mapping").map(|words| &words[1]);
    let (here, there) = mapping.and_then(|pair| pair.split_once(':')).expect("one pair");
    assert!(import.path.starts_with(here), "{} is not mapped", import.path.display());
    assert_eq!(host_path(&pod, &client, here), there);

    let (pod, daemon) = pod_of(DAEMON, "dfdaemon");
    assert_eq!(host_path(&pod, &daemon, there), there);
    let roots = configuration(&objects(DAEMON)).config.download.path_roots;
    assert!(roots.iter().any(|root| Path::new(there).starts_with(root)), "{there} is not beneath {roots:?}");
}
