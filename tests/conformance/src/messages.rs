//! Protobuf messages made from descriptors, with every field set, and the pairs of types that must agree on them.

use prost::Message;
use prost::bytes::Bytes;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value,
};

/// Their descriptors, from `dragonfly-api`.
///
/// # Panics
/// When the crate's descriptors are broken.
#[must_use]
pub fn their_pool() -> DescriptorPool {
    DescriptorPool::decode(dragonfly_api::FILE_DESCRIPTOR_SET).expect("their descriptors")
}

/// Our descriptors.
///
/// # Panics
/// When they are broken.
#[must_use]
pub fn our_pool() -> DescriptorPool {
    DescriptorPool::decode(damselfly_api::FILE_DESCRIPTOR_SET).expect("our descriptors")
}

/// What a made message contains.
#[derive(Clone, Copy, Debug)]
pub struct Make {
    /// Which arm of each oneof, counted round.
    pub arm: usize,
    /// How many entries each map has. With one the encoding has only one form.
    pub entries: usize,
    /// Whether fields from 1000 on, which are ours, are set.
    pub ours: bool,
}

/// The number from which fields of Dragonfly's messages are ours.
pub const OURS: u32 = 1000;
/// How deep messages contain each other. Every message is made as outermost one too.
const DEPTH: u32 = 4;

/// A message with every field set. Values depend on the field's number and depth only, so two descriptors that agree
/// make the same message.
#[must_use]
pub fn make(descriptor: &MessageDescriptor, make: Make) -> DynamicMessage {
    at_depth(descriptor, make, 0)
}

fn at_depth(descriptor: &MessageDescriptor, make: Make, depth: u32) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        if (field.number() >= OURS && !make.ours) || !is_chosen(&field, make.arm) {
            continue;
        }
        let deeper = matches!(field.kind(), Kind::Message(_)) && depth == DEPTH;
        if deeper {
            continue;
        }
        let value = if field.is_map() {
            let Kind::Message(entry) = field.kind() else { unreachable!("a map has entries") };
            let (key, value) = (entry.map_entry_key_field(), entry.map_entry_value_field());
            let entries = (0..make.entries).map(|n| {
                let n = u32::try_from(n).expect("few");
                let key = single(&key, make, depth, n).into_map_key().expect("a key");
                (key, single(&value, make, depth, n))
            });
            Value::Map(entries.collect::<std::collections::HashMap<MapKey, Value>>())
        } else if field.is_list() {
            Value::List((0..2).map(|n| single(&field, make, depth, n)).collect())
        } else {
            single(&field, make, depth, 0)
        };
        message.set_field(&field, value);
    }
    message
}

fn is_chosen(field: &FieldDescriptor, arm: usize) -> bool {
    match field.containing_oneof() {
        Some(oneof) if !oneof.is_synthetic() => {
            oneof.fields().nth(arm % oneof.fields().len()).is_some_and(|chosen| chosen == *field)
        }
        _ => true,
    }
}

/// One value, never the default.
fn single(field: &FieldDescriptor, make: Make, depth: u32, index: u32) -> Value {
    let number = field.number() * 16 + depth * 4 + index + 1;
    match field.kind() {
        Kind::Double => Value::F64(f64::from(number) + 0.5),
        Kind::Float => Value::F32(f32::from(u16::try_from(number % 60_000).expect("bounded")) + 0.25),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(-number.cast_signed()),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(-(i64::from(number) << 33)),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(u32::MAX - number),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(u64::MAX - u64::from(number)),
        Kind::Bool => Value::Bool(true),
        Kind::String => Value::String(format!("{} {number} ä", field.name())),
        Kind::Bytes => Value::Bytes(Bytes::from(vec![0xff; (number % 100) as usize + 1])),
        Kind::Enum(values) => Value::EnumNumber(values.values().last().map_or(1, |value| value.number())),
        Kind::Message(inner) => Value::Message(at_depth(&inner, make, depth + 1)),
    }
}

/// How many differently chosen messages show every arm of `descriptor`'s oneofs.
#[must_use]
pub fn arms(descriptor: &MessageDescriptor) -> usize {
    let real = descriptor.oneofs().filter(|oneof| !oneof.is_synthetic());
    real.map(|oneof| oneof.fields().len()).max().unwrap_or(1)
}

/// Decodes with one side's type and encodes again.
pub type Pass = fn(&[u8]) -> Result<Vec<u8>, String>;

/// A message that both sides have a type for.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// The message's full name in small letters; the types' names are spelt as Rust does.
    pub name: &'static str,
    /// Through their type.
    pub theirs: Pass,
    /// Through ours.
    pub ours: Pass,
}

fn pass<M: Message + Default>(bytes: &[u8]) -> Result<Vec<u8>, String> {
    M::decode(bytes).map(|message| message.encode_to_vec()).map_err(|error| error.to_string())
}

macro_rules! pairs {
    ($($package:ident { $($message:ident)* })*) => {
        [$($(Pair {
            name: concat!(stringify!($package), ".v2.", stringify!($message)),
            theirs: pass::<dragonfly_api::$package::v2::$message>,
            ours: pass::<damselfly_api::$package::v2::$message>,
        },)*)*]
    };
}

/// Every message that both sides have.
pub const PAIRS: &[Pair] = &pairs! {
    common {
        Peer CachePeer PersistentPeer PersistentCachePeer Task CacheTask PersistentTask
        PersistentCacheTask Host Cpu CgroupCpu CpuTimes Memory CgroupMemory Network Disk CgroupDisk
        Build Download ObjectStorage Hdfs HuggingFace ModelScope OpenCsg Range Piece
    }
    errordetails {
        Backend Unknown
    }
    dfdaemon {
        DownloadTaskRequest DownloadTaskStartedResponse DownloadPieceFinishedResponse
        DownloadTaskResponse SyncPiecesRequest SyncPiecesResponse StatTaskRequest StatLocalTaskRequest
        StatLocalTaskResponse ListLocalTasksRequest ListLocalTasksResponse ListTaskEntriesRequest
        ListTaskEntriesResponse Entry DeleteTaskRequest DeleteLocalTaskRequest DownloadCacheTaskRequest
        DownloadCacheTaskStartedResponse DownloadCacheTaskResponse SyncCachePiecesRequest
        SyncCachePiecesResponse DownloadCachePieceRequest DownloadCachePieceResponse
        StatCacheTaskRequest DeleteCacheTaskRequest DownloadPersistentTaskRequest
        DownloadPersistentTaskStartedResponse DownloadPersistentTaskResponse
        UploadPersistentTaskRequest UpdatePersistentTaskRequest StatPersistentTaskRequest
        StatLocalPersistentTaskRequest StatLocalPersistentTaskResponse ListLocalPersistentTasksRequest
        ListLocalPersistentTasksResponse DeletePersistentTaskRequest SyncPersistentPiecesRequest
        SyncPersistentPiecesResponse DownloadPersistentCacheTaskRequest
        DownloadPersistentCacheTaskStartedResponse DownloadPersistentCacheTaskResponse
        UploadPersistentCacheTaskRequest UpdatePersistentCacheTaskRequest
        StatPersistentCacheTaskRequest StatLocalPersistentCacheTaskRequest
        StatLocalPersistentCacheTaskResponse ListLocalPersistentCacheTasksRequest
        ListLocalPersistentCacheTasksResponse DeletePersistentCacheTaskRequest
        SyncPersistentCachePiecesRequest SyncPersistentCachePiecesResponse SyncHostRequest
        IbVerbsQueuePairEndpoint
    }
    manager {
        SeedPeerCluster SeedPeer UpdateSeedPeerRequest DeleteSeedPeerRequest SchedulerCluster Scheduler
        ListSchedulersRequest ListSchedulersResponse
    }
    scheduler {
        RegisterPeerRequest DownloadPeerStartedRequest DownloadPeerBackToSourceStartedRequest
        ReschedulePeerRequest DownloadPeerFinishedRequest DownloadPeerBackToSourceFinishedRequest
        DownloadPeerFailedRequest DownloadPeerBackToSourceFailedRequest DownloadPieceFinishedRequest
        DownloadPieceBackToSourceFinishedRequest DownloadPieceFailedRequest
        DownloadPieceBackToSourceFailedRequest AnnouncePeerRequest EmptyTaskResponse NormalTaskResponse
        NeedBackToSourceResponse MetadataOnlyResponse AnnouncePeerResponse StatPeerRequest
        DeletePeerRequest StatTaskRequest DeleteTaskRequest AnnounceHostRequest ListHostsRequest
        ListHostsResponse DeleteHostRequest RegisterCachePeerRequest DownloadCachePeerStartedRequest
        DownloadCachePeerBackToSourceStartedRequest RescheduleCachePeerRequest
        DownloadCachePeerFinishedRequest DownloadCachePeerBackToSourceFinishedRequest
        DownloadCachePeerFailedRequest DownloadCachePeerBackToSourceFailedRequest
        AnnounceCachePeerRequest EmptyCacheTaskResponse NormalCacheTaskResponse
        AnnounceCachePeerResponse StatCachePeerRequest DeleteCachePeerRequest StatCacheTaskRequest
        DeleteCacheTaskRequest RegisterPersistentPeerRequest DownloadPersistentPeerStartedRequest
        DownloadPersistentPeerBackToSourceStartedRequest ReschedulePersistentPeerRequest
        DownloadPersistentPeerFinishedRequest DownloadPersistentPeerBackToSourceFinishedRequest
        DownloadPersistentPeerFailedRequest DownloadPersistentPeerBackToSourceFailedRequest
        AnnouncePersistentPeerRequest EmptyPersistentTaskResponse NormalPersistentTaskResponse
        AnnouncePersistentPeerResponse StatPersistentPeerRequest DeletePersistentPeerRequest
        UploadPersistentTaskStartedRequest UploadPersistentTaskFinishedRequest
        UploadPersistentTaskFailedRequest StatPersistentTaskRequest DeletePersistentTaskRequest
        RegisterPersistentCachePeerRequest DownloadPersistentCachePeerStartedRequest
        ReschedulePersistentCachePeerRequest DownloadPersistentCachePeerFinishedRequest
        DownloadPersistentCachePeerFailedRequest AnnouncePersistentCachePeerRequest
        EmptyPersistentCacheTaskResponse NormalPersistentCacheTaskResponse
        AnnouncePersistentCachePeerResponse StatPersistentCachePeerRequest
        DeletePersistentCachePeerRequest UploadPersistentCacheTaskStartedRequest
        UploadPersistentCacheTaskFinishedRequest UploadPersistentCacheTaskFailedRequest
        StatPersistentCacheTaskRequest DeletePersistentCacheTaskRequest PreheatImageRequest
        StatImageRequest StatImageResponse PeerImage Image Layer PreheatFileRequest StatFileRequest
        StatFileResponse PeerFile File
    }
};
