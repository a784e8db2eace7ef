//! Sections and keys that are known and have no effect yet.
//!
//! Their values are checked all the same, so that a configuration that is accepted today is not refused by the version
//! that builds them.

use std::time::Duration;

use super::Listen;
use super::keys::{listen, server};
use super::section::Section;

/// Reads and forgets them, with one warning each.
pub(super) fn read(root: &Section<'_>) {
    let server = root.section("server");
    server.absolute_path("pluginDir");
    server.absolute_path("cacheDir");
    let limit = server.section("adaptiveRateLimit");
    limit.number("bucketCount", 50, 1..=u32::MAX);
    limit.period("bucketInterval", Duration::from_millis(200));
    limit.number("cpuThreshold", 100, 0..=100);
    limit.number("memoryThreshold", 90, 0..=100);
    limit.duration("shedCooldown", Duration::from_secs(5));
    limit.period("collectInterval", Duration::from_secs(3));
    limit.finish();
    for key in ["pluginDir", "cacheDir", "adaptiveRateLimit"] {
        server.not_built(key);
    }
    server.finish();

    let security = root.section("security");
    if security.boolean("enable", false) {
        security.refuse("enable", "false: connections would silently stay plaintext");
    }
    security.finish();

    proxy(root.section("proxy"));
    root.not_built("proxy");

    let tracing = root.section("tracing");
    tracing.parsed("protocol", "grpc, http or https", |text| {
        matches!(text, "grpc" | "http" | "https").then_some(())
    });
    tracing.string("endpoint");
    tracing.string("path");
    tracing.secret_map("headers");
    tracing.finish();
    root.not_built("tracing");
}

/// `stats`: nothing listens yet.
pub(super) fn stats(root: &Section<'_>) -> Listen {
    root.not_built("stats");
    server(root.section("stats"), 4004)
}

pub(super) fn scheduler(s: &Section<'_>) {
    s.period("scheduleTimeout", Duration::from_secs(3 * 3600));
    s.not_built("scheduleTimeout");
}

/// Of `storage`, whose `server` is `inner`.
pub(super) fn storage(s: &Section<'_>, inner: &Section<'_>) {
    s.period("writePieceTimeout", Duration::from_secs(360));
    s.positive_size("writeBufferSize", 524_288);
    s.positive_size("readBufferSize", 524_288);
    s.size("cacheCapacity", 64 << 20);
    for key in ["writePieceTimeout", "writeBufferSize", "readBufferSize", "cacheCapacity"] {
        s.not_built(key);
    }
    inner.boolean("tcpFastopen", false);
    // quicPort is read with the other ports.
    for key in ["tcpFastopen", "quicPort"] {
        inner.not_built(key);
    }
}

pub(super) fn backend(s: &Section<'_>) {
    s.boolean("enableCacheTemporaryRedirect", true);
    s.duration("cacheTemporaryRedirectTTL", Duration::from_secs(600));
    s.number("putConcurrentChunkCount", 16, 1..=1024);
    s.positive_size("putChunkSize", 8 << 20);
    s.duration("putTimeout", Duration::from_secs(900));
    s.boolean("enableHickoryDNS", true);
    for key in [
        "enableCacheTemporaryRedirect",
        "cacheTemporaryRedirectTTL",
        "putConcurrentChunkCount",
        "putChunkSize",
        "putTimeout",
        "enableHickoryDNS",
    ] {
        s.not_built(key);
    }
}

pub(super) fn gc_policy(p: &Section<'_>) {
    let day = Duration::from_secs(24 * 3600);
    p.duration("persistentTaskTTL", day);
    p.period("persistentCacheTaskTTL", day);
    p.duration("pageCacheIdleTimeout", Duration::from_secs(2400));
    for key in ["persistentTaskTTL", "persistentCacheTaskTTL", "pageCacheIdleTimeout"] {
        p.not_built(key);
    }
}

fn proxy(s: Section<'_>) {
    let server = s.section("server");
    listen(&server, "ip", "port", 4001);
    server.number("requestRateLimit", 4000, 1..=u64::MAX);
    server.path("caCert");
    server.path("caKey");
    let auth = server.section("basicAuth");
    auth.secret("username", 1..=20);
    auth.secret("password", 1..=20);
    auth.finish();
    server.finish();
    for rule in s.sections("rules") {
        rule.string("regex");
        rule.boolean("useTLS", false);
        rule.string("redirect");
        rule.strings("filteredQueryParams");
        rule.finish();
    }
    let mirror = s.section("registryMirror");
    mirror.string("addr");
    mirror.path("cert");
    mirror.boolean("enableTaskIDBasedBlobDigest", false);
    mirror.finish();
    s.boolean("disableBackToSource", false);
    s.boolean("prefetch", false);
    s.size("prefetchBandwidthLimit", 10_000_000_000);
    s.size("readBufferSize", 524_288);
    s.finish();
}
