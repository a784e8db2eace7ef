//! Every message and service that both sides have: the same numbers and types, and the same bytes.

use std::collections::{BTreeMap, BTreeSet};

use damselfly_conformance::messages::{Make, OURS, PAIRS, Pair, arms, make, our_pool, their_pool};
use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor};

/// The packages that Dragonfly's daemons and schedulers speak.
const PACKAGES: [&str; 5] = ["common.v2", "dfdaemon.v2", "errordetails.v2", "manager.v2", "scheduler.v2"];
/// Of the manager's package we have what daemons need.
const PARTLY: &str = "manager.v2";
/// Fields below 1000 that only we have.
const OUR_FIELDS: [(&str, u32); 3] = [
    ("dfdaemon.v2.SyncCachePiecesResponse", 4),
    ("dfdaemon.v2.SyncCachePiecesResponse", 5),
    ("dfdaemon.v2.SyncCachePiecesResponse", 6),
];
/// Messages in Dragonfly's packages that only we have begin so.
const OUR_MESSAGES: [&str; 3] = [
    "dfdaemon.v2.WritePersistentCacheTask",
    "dfdaemon.v2.ReadPersistentCacheTask",
    "dfdaemon.v2.PersistentCacheTask",
];
/// Methods in Dragonfly's services that only we have.
const OUR_METHODS: [&str; 2] = [
    "dfdaemon.v2.DfdaemonDownload.WritePersistentCacheTask",
    "dfdaemon.v2.DfdaemonDownload.ReadPersistentCacheTask",
];

fn shared(message: &MessageDescriptor) -> bool {
    PACKAGES.contains(&message.package_name()) && !message.is_map_entry()
}

/// Their messages with the types for them.
fn pairs() -> Vec<(MessageDescriptor, &'static Pair)> {
    let pairs: BTreeMap<String, &Pair> = PAIRS.iter().map(|pair| (pair.name.to_lowercase(), pair)).collect();
    let messages = their_pool();
    let messages = messages.all_messages().filter(shared);
    messages
        .filter_map(|message| Some((message.clone(), *pairs.get(&message.full_name().to_lowercase())?)))
        .collect()
}

/// Everything about a field that is on the wire or in generated code.
fn facts(field: &FieldDescriptor) -> String {
    let kind = match field.kind() {
        Kind::Message(message) if field.is_map() => {
            let (key, value) = (message.map_entry_key_field(), message.map_entry_value_field());
            format!("map<{:?}, {:?}>", key.kind(), value.kind())
        }
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(values) => values.full_name().to_owned(),
        scalar => format!("{scalar:?}"),
    };
    let oneof = field.containing_oneof();
    let oneof = oneof.filter(|oneof| !oneof.is_synthetic()).map(|oneof| oneof.name().to_owned());
    format!(
        "{} = {} {kind} {:?} optional {} packed {} in {oneof:?}",
        field.name(),
        field.number(),
        field.cardinality(),
        field.supports_presence(),
        field.is_packed()
    )
}

#[test]
fn no_message_is_missing() {
    let (theirs, ours) = (their_pool(), our_pool());
    let names = |pool: &prost_reflect::DescriptorPool| -> BTreeSet<String> {
        pool.all_messages().filter(shared).map(|message| message.full_name().to_owned()).collect()
    };
    let (theirs, ours) = (names(&theirs), names(&ours));
    let missing: Vec<_> = theirs.difference(&ours).filter(|name| !name.starts_with(PARTLY)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let own: Vec<_> = ours
        .difference(&theirs)
        .filter(|name| !OUR_MESSAGES.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    assert!(own.is_empty(), "in Dragonfly's packages, but only ours: {own:?}");

    let paired: BTreeSet<String> =
        pairs().into_iter().map(|(message, _)| message.full_name().to_owned()).collect();
    let both: BTreeSet<String> = theirs.intersection(&ours).cloned().collect();
    assert_eq!(paired, both, "PAIRS in src/messages.rs lists every message that both have");
    assert_eq!(PAIRS.len(), paired.len());
}

#[test]
fn fields_have_the_same_numbers_names_and_types() {
    let ours = our_pool();
    for (theirs, _) in pairs() {
        let name = theirs.full_name();
        let ours = ours.get_message_by_name(name).unwrap_or_else(|| panic!("{name} is spelt differently"));
        let facts = |message: &MessageDescriptor| -> BTreeMap<u32, String> {
            message.fields().map(|field| (field.number(), facts(&field))).collect()
        };
        let mut our_facts = facts(&ours);
        our_facts.retain(|number, _| *number < OURS && !OUR_FIELDS.contains(&(name, *number)));
        assert_eq!(our_facts, facts(&theirs), "{name}");
        for field in ours.fields().filter(|field| field.number() >= OURS) {
            let in_oneof = field.containing_oneof().is_some_and(|oneof| !oneof.is_synthetic());
            assert!(!in_oneof, "{}: Dragonfly's would see an empty oneof", field.full_name());
        }
    }
}

#[test]
fn enums_have_the_same_values() {
    let ours = our_pool();
    let mut compared = 0;
    for theirs in their_pool().all_enums().filter(|values| PACKAGES.contains(&values.package_name())) {
        let Some(ours) = ours.get_enum_by_name(theirs.full_name()) else {
            assert!(theirs.package_name() == PARTLY, "{} is missing", theirs.full_name());
            continue;
        };
        let values = |values: &prost_reflect::EnumDescriptor| -> BTreeMap<i32, String> {
            values.values().map(|value| (value.number(), value.name().to_owned())).collect()
        };
        assert_eq!(values(&ours), values(&theirs), "{}", theirs.full_name());
        compared += 1;
    }
    assert!(compared >= 5, "only {compared} enums");
}

fn signature(method: &MethodDescriptor) -> (String, bool, String, bool) {
    (
        method.input().full_name().to_owned(),
        method.is_client_streaming(),
        method.output().full_name().to_owned(),
        method.is_server_streaming(),
    )
}

#[test]
fn services_have_the_same_methods() {
    let ours = our_pool();
    let mut services = 0;
    for theirs in their_pool().services().filter(|service| PACKAGES.contains(&service.package_name())) {
        let name = theirs.full_name();
        let ours = ours.get_service_by_name(name).unwrap_or_else(|| panic!("{name} is missing"));
        let methods = |service: &prost_reflect::ServiceDescriptor| -> BTreeMap<String, _> {
            service.methods().map(|method| (method.full_name().to_owned(), signature(&method))).collect()
        };
        let (mut ours, mut theirs) = (methods(&ours), methods(&theirs));
        ours.retain(|method, _| !OUR_METHODS.contains(&method.as_str()));
        if name.starts_with(PARTLY) {
            theirs.retain(|method, _| ours.contains_key(method));
        }
        assert_eq!(ours, theirs, "{name}");
        services += 1;
    }
    assert_eq!(services, 4);
}

#[test]
fn their_messages_pass_through_both_sides_unchanged() {
    for (message, pair) in pairs() {
        for arm in 0..arms(&message) {
            let made = make(&message, Make { arm, entries: 1, ours: false });
            let bytes = made.encode_to_vec();
            assert_eq!((pair.theirs)(&bytes).as_ref(), Ok(&bytes), "{} through theirs, arm {arm}", pair.name);
            assert_eq!((pair.ours)(&bytes).as_ref(), Ok(&bytes), "{} through ours, arm {arm}", pair.name);
        }
    }
}

#[test]
fn maps_of_any_order_mean_the_same() {
    let mut with_maps = 0;
    for (message, pair) in pairs() {
        let made = make(&message, Make { arm: 0, entries: 5, ours: false });
        with_maps += usize::from(message.fields().any(|field| field.is_map()));
        for pass in [pair.theirs, pair.ours] {
            let bytes = pass(&made.encode_to_vec()).unwrap();
            let again = DynamicMessage::decode(message.clone(), bytes.as_slice()).unwrap();
            assert_eq!(again, made, "{}", pair.name);
        }
    }
    assert!(with_maps >= 5, "only {with_maps} messages with maps");
}

#[test]
fn our_fields_are_skipped_by_theirs() {
    let ours = our_pool();
    let mut extended = 0;
    for (_, pair) in pairs() {
        let message = ours.all_messages().find(|message| message.full_name().eq_ignore_ascii_case(pair.name));
        let message = message.unwrap_or_else(|| panic!("{} is missing", pair.name));
        for arm in 0..arms(&message) {
            let of = |ours| make(&message, Make { arm, entries: 1, ours }).encode_to_vec();
            let (with, without) = (of(true), of(false));
            extended += usize::from(with != without);
            assert_eq!((pair.ours)(&with).as_ref(), Ok(&with), "{} through ours, arm {arm}", pair.name);
            if !OUR_FIELDS.iter().any(|(name, _)| name.eq_ignore_ascii_case(pair.name)) {
                assert_eq!((pair.theirs)(&with), Ok(without), "{} through theirs, arm {arm}", pair.name);
            }
        }
    }
    assert!(extended >= 5, "only {extended} messages carry fields of ours");
}

#[test]
fn the_places_of_cached_pieces_are_skipped_by_theirs() {
    let name = OUR_FIELDS[0].0;
    let bytes_of = |pool: prost_reflect::DescriptorPool| {
        let message = pool.get_message_by_name(name).unwrap();
        make(&message, Make { arm: 0, entries: 1, ours: true }).encode_to_vec()
    };
    let (ours, theirs) = (bytes_of(our_pool()), bytes_of(their_pool()));
    assert_ne!(ours, theirs);
    let pair = PAIRS.iter().find(|pair| pair.name.eq_ignore_ascii_case(name)).unwrap();
    assert_eq!((pair.theirs)(&ours), Ok(theirs));
}

#[test]
fn an_unknown_arm_is_an_empty_oneof() {
    // What a future Dragonfly might send: an arm that neither side knows.
    let name = "scheduler.v2.AnnouncePeerResponse";
    let unknown = [0xfa, 0x01, 0x03, 0x0a, 0x01, b'x'];
    let pair = PAIRS.iter().find(|pair| pair.name == name).unwrap();
    assert_eq!((pair.theirs)(&unknown), Ok(Vec::new()));
    assert_eq!((pair.ours)(&unknown), Ok(Vec::new()));
}
