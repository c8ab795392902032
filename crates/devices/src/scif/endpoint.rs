//! Endpoints: how programs on two nodes find each other, and the messages between them.
//!
//! A program binds to a port of its node. There it listens, or it asks a port of another node for a
//! connection, which whoever listens there accepts. Each state is a type of its own, so nobody
//! sends before there is a connection. Messages arrive in order; who closes is not heard of any
//! more, but what it has sent before is still received.
//!
//! Linux counterpart: drivers/misc/mic/scif/scif_api.c and scif_epd.c, version 4.19

use core::fmt;
use lockdep::sync::{Condvar, Mutex};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A port of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Port(pub u16);

/// Messages of one direction that are on their way at once.
pub const MESSAGES_MAX: usize = 16;

/// What went wrong between two programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndpointError {
    /// Somebody is bound to the port.
    PortTaken(Port),
    /// Nobody listens there, or nobody does any more, or as many wait as the listener lets.
    Refused(Port),
    /// The other side has closed, and all that it had sent was received.
    Disconnected,
}

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PortTaken(Port(nr)) => write!(f, "port {nr} is taken"),
            Self::Refused(Port(nr)) => write!(f, "nobody accepts connections at port {nr}"),
            Self::Disconnected => f.write_str("the other side has closed"),
        }
    }
}

impl std::error::Error for EndpointError {}

/// One side of the bus: the host, or a card.
pub struct Node {
    /// The ports that are bound, with the backlogs of those where somebody listens.
    ports: Mutex<BTreeMap<Port, Option<Arc<Backlog>>>>,
}

/// Who has asked for a connection and was not accepted yet.
struct Backlog {
    asking: Mutex<Asking>,
    arrived: Condvar,
}

struct Asking {
    endpoints: VecDeque<Endpoint>,
    nr_max: usize,
}

impl Node {
    /// A node with all its ports free.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            ports: Mutex::new("devices.scif.ports", BTreeMap::new()),
        })
    }

    /// Binds to a port, until the answer and what is made of it are dropped.
    ///
    /// # Errors
    ///
    /// [`EndpointError::PortTaken`]
    pub fn bind(self: &Arc<Self>, port: Port) -> Result<Bound, EndpointError> {
        let mut ports = self.ports.lock();
        if ports.contains_key(&port) {
            return Err(EndpointError::PortTaken(port));
        }
        ports.insert(port, None);
        drop(ports);
        Ok(Bound {
            node: Arc::clone(self),
            port,
        })
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").finish_non_exhaustive()
    }
}

/// A port that belongs to the caller.
#[derive(Debug)]
pub struct Bound {
    node: Arc<Node>,
    port: Port,
}

impl Bound {
    /// Lets up to `nr_max` others wait here for a connection.
    pub fn listen(self, nr_max: usize) -> Listener {
        let asking = Asking {
            endpoints: VecDeque::with_capacity(nr_max),
            nr_max,
        };
        let backlog = Arc::new(Backlog {
            asking: Mutex::new("devices.scif.backlog", asking),
            arrived: Condvar::new("devices.scif.asked"),
        });
        let listens = Some(Arc::clone(&backlog));
        self.node.ports.lock().insert(self.port, listens);
        Listener {
            bound: self,
            backlog,
        }
    }

    /// Asks for a connection to a port of another node; does not wait.
    ///
    /// # Errors
    ///
    /// [`EndpointError::Refused`]
    pub fn ask(self, node: &Node, port: Port) -> Result<Connecting, EndpointError> {
        let backlog = node.ports.lock().get(&port).cloned().flatten();
        let backlog = backlog.ok_or(EndpointError::Refused(port))?;
        let (mut ours, theirs) = Endpoint::pair();
        let mut asking = backlog.asking.lock();
        if asking.endpoints.len() == asking.nr_max {
            return Err(EndpointError::Refused(port));
        }
        asking.endpoints.push_back(theirs);
        drop(asking);
        backlog.arrived.notify_all();
        ours.bound = Some(self);
        Ok(Connecting {
            endpoint: ours,
            port,
        })
    }

    /// Connects to a port of another node; waits until it is accepted.
    ///
    /// # Errors
    ///
    /// [`EndpointError::Refused`]
    pub fn connect(self, node: &Node, port: Port) -> Result<Endpoint, EndpointError> {
        self.ask(node, port)?.wait()
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let backlog = self.node.ports.lock().remove(&self.port).flatten();
        if let Some(backlog) = backlog {
            // Dropped with the lock let go of: who waits is told that nobody accepts.
            let mut asking = backlog.asking.lock();
            asking.nr_max = 0;
            let refused = core::mem::take(&mut asking.endpoints);
            drop(asking);
            drop(refused);
        }
    }
}

/// A port at which connections are accepted. Who waits when it is dropped is refused.
pub struct Listener {
    bound: Bound,
    backlog: Arc<Backlog>,
}

impl Listener {
    /// Accepts the next connection; waits until there is one.
    pub fn accept(&self) -> Endpoint {
        let asking = self.backlog.asking.lock();
        let is_empty = |asking: &mut Asking| asking.endpoints.is_empty();
        let mut asking = self.backlog.arrived.wait_while(asking, is_empty);
        let endpoint = asking.endpoints.pop_front();
        drop(asking);
        let endpoint = endpoint.expect("it was waited for");
        endpoint.link.state.lock().is_accepted = true;
        endpoint.link.changed.notify_all();
        endpoint
    }

    /// Where it listens.
    pub fn port(&self) -> Port {
        self.bound.port
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("port", &self.port())
            .finish_non_exhaustive()
    }
}

/// A connection that was asked for.
#[derive(Debug)]
pub struct Connecting {
    endpoint: Endpoint,
    port: Port,
}

impl Connecting {
    /// Waits until it is accepted.
    ///
    /// # Errors
    ///
    /// [`EndpointError::Refused`], also if nobody listens any more.
    pub fn wait(self) -> Result<Endpoint, EndpointError> {
        let Endpoint { link, side, .. } = &self.endpoint;
        let (link, other) = (Arc::clone(link), side.other());
        let is_open = |state: &mut State| !state.is_accepted && !state.is_closed[other as usize];
        let state = link.changed.wait_while(link.state.lock(), is_open);
        match state.is_accepted {
            true => Ok(self.endpoint),
            false => Err(EndpointError::Refused(self.port)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    Asked,
    Accepted,
}

impl Side {
    const fn other(self) -> Self {
        match self {
            Self::Asked => Self::Accepted,
            Self::Accepted => Self::Asked,
        }
    }
}

/// What two endpoints share. The two sides have an entry each.
struct Link {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    is_accepted: bool,
    is_closed: [bool; 2],
    /// What the side has sent and the other has not received.
    sent: [VecDeque<Box<[u8]>>; 2],
}

/// One end of a connection. Closed when dropped.
pub struct Endpoint {
    link: Arc<Link>,
    side: Side,
    /// The port of who asked.
    bound: Option<Bound>,
}

impl Endpoint {
    fn pair() -> (Self, Self) {
        let state = State {
            is_accepted: false,
            is_closed: [false; 2],
            sent: [const { VecDeque::new() }; 2],
        };
        let link = Arc::new(Link {
            state: Mutex::new("devices.scif.link", state),
            changed: Condvar::new("devices.scif.changed"),
        });
        let side = |side| Self {
            link: Arc::clone(&link),
            side,
            bound: None,
        };
        (side(Side::Asked), side(Side::Accepted))
    }

    /// Sends a message; waits while [`MESSAGES_MAX`] are on their way.
    ///
    /// # Errors
    ///
    /// [`EndpointError::Disconnected`] if either side has closed.
    pub fn send(&self, message: &[u8]) -> Result<(), EndpointError> {
        let (own, message) = (self.side as usize, message.into());
        let is_full = |state: &mut State| {
            !state.is_closed.contains(&true) && state.sent[own].len() == MESSAGES_MAX
        };
        let state = self.link.state.lock();
        let mut state = self.link.changed.wait_while(state, is_full);
        if state.is_closed.contains(&true) {
            return Err(EndpointError::Disconnected);
        }
        state.sent[own].push_back(message);
        drop(state);
        self.link.changed.notify_all();
        Ok(())
    }

    /// Receives the next message; waits until there is one.
    ///
    /// # Errors
    ///
    /// [`EndpointError::Disconnected`] when there will be none.
    pub fn recv(&self) -> Result<Box<[u8]>, EndpointError> {
        let other = self.side.other() as usize;
        let is_quiet =
            |state: &mut State| !state.is_closed.contains(&true) && state.sent[other].is_empty();
        let state = self.link.state.lock();
        let mut state = self.link.changed.wait_while(state, is_quiet);
        let message = state.sent[other].pop_front();
        drop(state);
        self.link.changed.notify_all();
        message.ok_or(EndpointError::Disconnected)
    }

    /// Whether neither side has closed.
    pub fn is_connected(&self) -> bool {
        !self.link.state.lock().is_closed.contains(&true)
    }

    /// Closes this side. Whoever waits at either is told.
    pub fn close(&self) {
        self.link.state.lock().is_closed[self.side as usize] = true;
        self.link.changed.notify_all();
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("side", &self.side)
            .field("port", &self.bound.as_ref().map(|bound| bound.port))
            .finish_non_exhaustive()
    }
}
