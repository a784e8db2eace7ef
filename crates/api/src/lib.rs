//! Protobuf types and gRPC services generated from `proto/` by `cargo xtask codegen`, checked in. Nothing else.
//!
//! `common`, `dfdaemon`, `scheduler`, `manager` and `errordetails` are Dragonfly's packages; fields from 1000 on and all of
//! `damselfly` are ours (`docs/wire.md`).

/// The descriptors of every file in `proto/` and of what they import, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/descriptors.bin");

macro_rules! package {
    ($(#[$doc:meta])* $package:ident :: $version:ident, $file:literal) => {
        $(#[$doc])*
        pub mod $package {
            #[doc = concat!("The package `", stringify!($package), ".", stringify!($version), "`.")]
            #[allow(
                missing_docs,
                unused_qualifications,
                let_underscore_drop,
                clippy::all,
                clippy::large_futures,
                clippy::too_many_lines,
                clippy::allow_attributes_without_reason,
                rustdoc::all,
                reason = "generated code"
            )]
            pub mod $version {
                include!(concat!("gen/", $file));
            }
        }
    };
}

package! {
    /// What the other packages share: hosts, peers, tasks, pieces, downloads.
    common::v2, "common.v2.rs"
}
package! {
    /// Between daemons, and from programs to their daemon.
    dfdaemon::v2, "dfdaemon.v2.rs"
}
package! {
    /// From daemons to schedulers.
    scheduler::v2, "scheduler.v2.rs"
}
package! {
    /// From daemons to Dragonfly's manager.
    manager::v2, "manager.v2.rs"
}
package! {
    /// Details of failures.
    errordetails::v2, "errordetails.v2.rs"
}
package! {
    /// Damselfly's own protocol.
    damselfly::v1, "damselfly.v1.rs"
}
