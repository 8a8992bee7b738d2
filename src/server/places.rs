//! Places for TLS handshakes: so many at a time, and of these one client has a share. Whoever finds none waits for its turn, since a
//! crowd of handshakes is no attack when many people share an address, or all connect anew at once.

use std::net::IpAddr;
use std::sync::Arc;

use dashmap::DashMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::admission::network;

/// The places that there are. A client is known only while it has one or waits for one.
#[derive(Debug)]
pub struct Places {
    all: Arc<Semaphore>,
    share: usize,
    clients: DashMap<IpAddr, Arc<Semaphore>>,
}

/// A place; dropping it makes room.
#[derive(Debug)]
pub struct Place {
    _all: Option<OwnedSemaphorePermit>,
    _share: Option<Share>,
}

/// One client's part, or its wait for it.
#[derive(Debug)]
struct Share {
    places: Arc<Places>,
    client: IpAddr,
    permit: Option<OwnedSemaphorePermit>,
}

impl Places {
    /// So many places, of which a client has at most `share`.
    pub fn new(most: usize, share: usize) -> Places {
        Places { all: Arc::new(Semaphore::new(most)), share, clients: DashMap::new() }
    }

    /// The next place for `client`; without one it is of somebody who is trusted with all of them. The caller bounds the wait.
    pub async fn take(self: &Arc<Self>, client: Option<IpAddr>) -> Place {
        let share = match client {
            Some(client) => Some(Share::take(self, network(client)).await),
            None => None,
        };
        // Never closed, so a place comes.
        Place { _all: self.all.clone().acquire_owned().await.ok(), _share: share }
    }
}

impl Share {
    async fn take(places: &Arc<Places>, client: IpAddr) -> Share {
        // Before the wait: one that is given up must leave nothing behind either.
        let mut share = Share { places: places.clone(), client, permit: None };
        let semaphore = places.clients.entry(client).or_insert_with(|| Arc::new(Semaphore::new(places.share))).clone();
        share.permit = semaphore.acquire_owned().await.ok();
        share
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        drop(self.permit.take());
        // Whoever has or awaits a permit of it counts as well.
        self.places.clients.remove_if(&self.client, |_, semaphore| Arc::strong_count(semaphore) == 1);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// The place, if it can be had at once.
    fn now(take: std::pin::Pin<&mut impl Future<Output = Place>>) -> Option<Place> {
        match take.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(place) => Some(place),
            Poll::Pending => None,
        }
    }

    fn client(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    #[test]
    fn a_client_beyond_its_share_waits_and_others_do_not() {
        let places = Arc::new(Places::new(3, 2));
        let (one, other) = (client("192.0.2.1"), client("192.0.2.2"));
        let first = now(pin!(places.take(one))).expect("a place");
        let _second = now(pin!(places.take(one))).expect("a place");
        let mut third = pin!(places.take(one));
        assert!(now(third.as_mut()).is_none(), "two are its share");
        let elsewhere = now(pin!(places.take(other))).expect("a place");
        assert!(now(pin!(places.take(None))).is_none(), "three are all");
        drop(first);
        assert!(now(third.as_mut()).is_some());
        drop(elsewhere);
    }

    #[test]
    fn nobody_is_remembered() {
        let places = Arc::new(Places::new(9, 1));
        let first = now(pin!(places.take(client("2001:db8::1")))).expect("a place");
        {
            let mut given_up = pin!(places.take(client("2001:db8::2")));
            assert!(now(given_up.as_mut()).is_none(), "one /64 is one client");
            assert_eq!(places.clients.len(), 1);
        }
        drop(first);
        assert!(places.clients.is_empty());
        let _again = now(pin!(places.take(client("2001:db8::1")))).expect("a place");
    }
}
