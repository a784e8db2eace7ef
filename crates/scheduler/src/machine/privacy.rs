//! Who is kept from private content although it has the id.
//!
//! Every further client of content that was fetched with request headers is let in by the origin, which its daemon asks.
//! An id that is not made from the URL (`content_for_calculating_task_id`, a blob's digest) may be given together with
//! any URL, that of a server of the asker's for instance, which confirms whatever it is asked. On the host that holds the
//! content the daemon knows where it came from; of content on other hosts only the scheduler does. So a private task is
//! for those whose URL names the task's own resource. The others are refused, and their daemons fetch what their own
//! URLs name.

use damselfly_core::PeerId;
use damselfly_core::resource::{place_of, resource};

use super::Cx;
use super::event::About;
use super::peers::Peer;
use super::tasks::Task;

/// What a refused peer is told.
pub(super) const ELSEWHERE: &str = "the task holds private content of another URL: use that URL, or an id of its own \
     (leave out --content-for-calculating-task-id, or the blob's digest)";

fn named(about: &About) -> Option<String> {
    resource(&about.url, &about.filtered_query_params)
}

impl Task {
    pub(super) fn is_private(&self) -> bool {
        self.learned.as_ref().is_some_and(|learned| learned.private)
    }

    /// A host that holds the private content says where it is from. Counts until somebody registers with the whole URL.
    pub(super) fn comes_from(&mut self, url: &str) {
        if self.place.is_none() {
            self.place = place_of(url);
        }
    }

    /// Takes over what the task is about from the first who says so; says whether this URL names another resource than
    /// the task's.
    pub(super) fn take_about(&mut self, about: About) -> bool {
        if self.about.url.is_empty() {
            let elsewhere = self.place.is_some() && self.place != place_of(&about.url);
            if !elsewhere {
                self.about = about;
            }
            return elsewhere;
        }
        named(&self.about) != named(&about)
    }

    /// Whether the peer must not tell of private content, nor be told of it.
    pub(super) fn is_elsewhere(&self, id: &PeerId) -> bool {
        self.peers.get(id).is_some_and(|peer| peer.elsewhere)
    }

    /// The content has turned out to be private: refuses those whose URL is another. They have nothing of it yet,
    /// because a fetcher tells what the origin answered before it stores the first byte.
    pub(super) fn refuse_elsewhere(&mut self, cx: &mut Cx<'_>) {
        let others = self.peers.values().filter(|peer| peer.elsewhere && peer.is_active());
        let others: Vec<PeerId> = others.map(|peer: &Peer| peer.id.clone()).collect();
        for id in others {
            self.refuse(&id, ELSEWHERE, cx);
        }
    }
}
