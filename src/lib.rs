//! Skep is the front door of a Docker Swarm: it builds a routing table from service labels, swaps it while requests flow,
//! and proxies them. *A skep is the straw hive that houses a swarm.* Its promise: **nothing is silent, nothing is dropped.**
//!
//! # The map
//! A file at the top of `src/` decides: it is pure, named by a noun of the domain, and takes the clock, the seed and the
//! snapshot as arguments. A file below it acts: it is named by a technology and makes no choice that its parent could make.
//!
//! ```text
//! rank 6  main -> cli -> server        the assemblers: they may know everything
//! rank 5  provider/{docker,compose}  store/{disk,keyed}  proxy/{pingora,stream,...}  backup/{borg,engine,runner,...}  telemetry/{log,...}
//! rank 4  proxy                        what to do with one request
//! rank 3  state                        Snapshot + Config -> State, and its swap; the one module that knows all features
//! rank 2  route  upstream  traffic  certificate  auth  policy  backup       the features; never each other
//! rank 1  label  config  provider  store  handover
//! rank 0  diagnostic  snapshot  telemetry  outbound
//! ```
//! Imports go down only; `tests/architecture.rs` holds it. `label/*`, `route/*` and `state/*` are parts of pure decisions,
//! so they are held to the rules of their parents.
//!
//! # Invariants
//! 1. *Empty is not unreadable.* A failed listing never yields a snapshot; the last state stays, and is kept on disk for a
//!    start without Docker (`provider`, `store::disk`).
//! 2. *The table is a function of the snapshot.* No hidden memory: a restart behaves like a reload. What must survive a
//!    swap lives in [`upstream::Ledger`] (in-flight counts and health, by backend) and [`proxy::limit::Limits`] (rates, places, circuits, by route).
//! 3. *Protection fails closed.* A finding on an access label, or on a misspelling of one, closes that route (`auth`, `label`); a directory
//!    that gives no answer lets nobody in who was not in before (`auth::gate`).
//! 4. *Conflicts are decided by the data:* the older service keeps the host and path (`route`).
//! 5. *One load per request*, an `Arc` in the request's context; no guard across an await (`proxy::pingora`).
//! 6. *One writer per swap* ([`state::Live`]).
//! 7. *A label never takes a neighbour down.* One bad key invalidates that key or that route (`state`, `tests/labels/`).
//! 8. *The application comes back:* what is paused or stopped was written down before, and is watched by a process of its own
//!    (`backup::journal`, `backup::guard`); an archive has its name only once its run ended well (`backup::archive`).
//! 9. *Maps are ordered* wherever the order can reach a user.
//!
//! # Seven walks
//! **A label changes.** Docker tells [`provider::docker`], which asks [`provider`] when to list; the listing becomes a
//! [`snapshot::Snapshot`]; `server` hands it to [`state::State::build`], which asks [`label::parse`] and then each feature's
//! `parse` for its typed keys; [`state::Live::publish`] compares, stores and says what changed.
//!
//! **A request arrives.** `server::listener` accepts on one of the worker threads and hands the connection to [`proxy::lean`]. Plain
//! requests stay there, of HTTP/1.1 as bytes in and bytes out, of HTTP/2 as streams that its connection's task serves itself.
//! Everything else (upgrades, chunked requests of HTTP/1.1, gRPC, routes that compress or mirror, TLS upstreams) goes to pingora,
//! request by request, through [`proxy::stream`] and [`proxy::pingora`]. Both load the state once, let
//! [`proxy::route`] decide, ask [`proxy::limit::Limits::admit`] whether the request may go on now, let [`upstream::Pool::pick`] choose a
//! backend, decide on another try by [`upstream::retry`], and hand a [`telemetry::Record`] to the access log and the metrics at the end.
//!
//! **A connection arrives that nobody looks into**: on the port of a TCP route (`server::ports`), or with a name whose TLS is passed
//! through ([`proxy::passthrough`]). [`proxy::conduit`] picks a task as for a request, joins the two, and records the connection as one.
//!
//! **A name wants a certificate.** [`state::State`] has the wishes of all labels; `server::certify` asks [`certificate::plan`] what is to
//! be done about the difference to what the [`store`] has, and does it: probes, orders ([`certificate::acme`]), makes, renews, drops.
//! `server::credentials` turns what there is into the keyring that handshakes take from, while they go on.
//!
//! **Somebody signs in.** A route's labels ask for groups; [`proxy::route`] asks [`auth::passage`], which asks who sends the request: a
//! cookie or remembered credentials say so without a wait (`auth::roster`). Where somebody else has to be asked, the request goes to
//! `proxy::questions`: `auth::gate` checks passwords at the directory (`auth::ldap`, `auth::file`) within the bounds of
//! [`auth::throttle`], and `auth::reception` answers at `/.skep/`. `auth::register` keeps sessions in the store, looks their users up again
//! in the background, and ends them; what still flows is cut then (`proxy::standing`).
//!
//! **A volume is saved.** `server::saving` lists what the engine has; [`backup::survey`] reads the labels of services and volumes,
//! [`backup::plan`] says what is due, and [`backup::runner`] carries out the [`backup::step`]s of a job: it writes into a journal
//! ([`backup::shelf`]) what it is about to pause, has a guard watch over it, lets [`backup::borg`] read the files and the dump that a container
//! streams, asks for the archive again, lets [`backup::judge`] judge it, and only then gives it its name. [`backup::standing`] says how
//! everything stands and [`backup::notice`] who has to hear of it. `skep backup` does the same from the command line, by the same parts.
//!
//! **A user asks why.** `skep explain URL` fetches the snapshot of the running edge, builds the same state from it, and
//! prints every candidate with the reason it lost: there is no second copy of the rules to disagree with the first.

pub mod auth;
pub mod backup;
pub mod certificate;
pub mod cli;
pub mod config;
pub mod diagnostic;
pub mod handover;
pub mod label;
pub mod outbound;
pub mod policy;
pub mod provider;
pub mod proxy;
pub mod route;
pub mod server;
pub mod snapshot;
pub mod state;
pub mod store;
pub mod telemetry;
pub mod traffic;
pub mod upstream;
