//! Who may have content that was fetched with somebody's request headers (promise I11).
//!
//! The origin decides, and only that content's own origin can. An id that is made from its URL names its origin by
//! itself; one that is made from anything else (`content_for_calculating_task_id`, a blob's digest) may be given together
//! with any URL, that of a server of the asker's for instance, which confirms whatever it is asked. So the URL that the
//! task was made for counts, and what is fetched with headers goes only into a task that was made for its URL.

use damselfly_core::resource::place;
use damselfly_storage::{Meta, TaskContent};
use tonic::Status;
use url::Url;

use super::{StreamArgs, verdict};

/// Whether the id says which URL it belongs to.
fn names_its_url(args: &StreamArgs) -> bool {
    let download = &args.wish.download;
    download.content_for_calculating_task_id.is_none() && !download.enable_task_id_based_blob_digest
}

/// Whether the client's URL is the one that the task was made for.
pub(super) fn is_its_url(args: &StreamArgs, content: &TaskContent) -> bool {
    let asked = args.wish.request.as_ref();
    asked.is_some_and(|asked| same_resource(&content.meta().url_redacted, &asked.url, names_its_url(args)))
}

/// Whether what this client's request fetches may enter the task.
pub(super) fn may_share(args: &StreamArgs, content: &TaskContent) -> bool {
    let private = args.wish.request.as_ref().is_some_and(|request| request.is_private());
    let private = private && args.engine.config.private_tasks;
    // Nothing is fetched for a complete one.
    !private || content.is_complete() || is_its_url(args, content)
}

/// The refusal of a client whose URL is not the task's.
pub(super) fn elsewhere(args: &StreamArgs) -> Status {
    Status::permission_denied(format!(
        "task {} was made for another URL, so nobody can confirm that what was fetched with request headers is yours: \
         use that URL, or an id of its own (leave out --content-for-calculating-task-id, or the blob's digest)",
        args.key.id
    ))
}

/// Asks the origin of a private task whether it lets this client in.
///
/// # Errors
/// The origin's refusal, or that this is not the content's origin.
pub(super) async fn at_the_origin(args: &StreamArgs, meta: &Meta) -> Result<(), Status> {
    let named = names_its_url(args);
    let asked = args.wish.request.as_ref();
    let Some(request) = asked.filter(|asked| same_resource(&meta.url_redacted, &asked.url, named)) else {
        return Err(elsewhere(args));
    };
    let get = damselfly_source::Request {
        headers: request.headers.clone(),
        range: Some((0, Some(0))),
        // The values of the query are not kept and may tell one content from another: then its version must be the
        // same. Where the id knows the whole URL, a newer version is no reason to lock everybody out.
        expect: (!named).then_some(&meta.validator),
        expect_length: meta.geometry.filter(|_| !named).map(|geometry| geometry.content_length()),
        ..damselfly_source::Request::new(request.url.clone())
    };
    let asking = args.engine.metrics.origin_request(request.url.scheme());
    args.engine.origin.get(&get).await.map(drop).map_err(|why| {
        asking.failed();
        let message = format!("the origin does not confirm that you may have this content: {why}");
        verdict::backend(&message, why.status(), why.headers())
    })
}

/// Whether `asked` is where `stored` is, a URL without its secrets. The names in the query count unless the id answers
/// for it: then clients may filter different parameters and mean the same.
fn same_resource(stored: &str, asked: &Url, named: bool) -> bool {
    let Ok(stored) = Url::parse(stored) else { return false };
    let names = |url: &Url| {
        let mut names: Vec<_> = url.query_pairs().map(|(name, _)| name.into_owned()).collect();
        names.sort();
        names
    };
    place(&stored) == place(asked) && (named || names(&stored) == names(asked))
}

#[cfg(test)]
mod tests {
    use damselfly_core::redact;

    use super::*;

    fn same(stored: &str, asked: &str, named: bool) -> bool {
        same_resource(&redact::url(stored), &Url::parse(asked).unwrap(), named)
    }

    #[test]
    fn everything_but_secrets_tells_resources_apart() {
        let stored = "https://me:secret@origin/a/b?version=1&sig=x#part";
        for asked in ["https://origin:443/a/b?sig=y&version=1", "https://you@ORIGIN/a/b?version=2&sig=z"] {
            assert!(same(stored, asked, false), "{asked}");
        }
        for asked in [
            "http://origin/a/b?version=1&sig=x",
            "https://origin.evil/a/b?version=1&sig=x",
            "https://origin:8443/a/b?version=1&sig=x",
            "https://origin/a/c?version=1&sig=x",
            "https://origin/a/b/?version=1&sig=x",
        ] {
            assert!(!same(stored, asked, false) && !same(stored, asked, true), "{asked}");
        }
        // Filtered parameters differ between clients of one id, but not where the id says nothing of the URL.
        assert!(same(stored, "https://origin/a/b?version=1", true));
        assert!(!same(stored, "https://origin/a/b?version=1", false));
        assert!(!same("", "https://origin/a/b", true));
    }
}
