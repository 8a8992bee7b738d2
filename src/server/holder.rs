//! Who listens on an address that we cannot have: `/proc/net/tcp` names the socket, `/proc/PID/fd` the process that holds it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// State LISTEN in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// A process that holds a listening socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub name: String,
    pub pid: u32,
}

/// The process that listens where `address` would. `None` where it cannot be told: another container's, another user's.
pub fn of(address: SocketAddr) -> Option<Holder> {
    let inodes: Vec<u64> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| listeners(&table))
        .filter(|(local, _)| meet(*local, address))
        .map(|(_, inode)| inode)
        .collect();
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find(|pid| *pid != std::process::id() && holds(*pid, &inodes)).map(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Holder { name: readable(name.trim()), pid }
    })
}

fn holds(pid: u32, inodes: &[u64]) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| {
        let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        inode.is_some_and(|inode: u64| inodes.contains(&inode))
    })
}

/// A process names itself: nothing of it may act on a terminal.
fn readable(name: &str) -> String {
    name.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

/// Addresses that are listened on and the inodes of their sockets, off the text of `/proc/net/tcp` or `/proc/net/tcp6`.
fn listeners(table: &str) -> Vec<(SocketAddr, u64)> {
    let read = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (local, state, inode) = (words.nth(1)?, words.nth(1)?, words.nth(5)?);
        (state == LISTEN).then_some(())?;
        Some((local_address(local)?, inode.parse().ok()?))
    };
    table.lines().skip(1).filter_map(read).collect()
}

/// `0100007F:1F90` is 127.0.0.1:8080: words of four bytes in the machine's order, the port in the usual one.
fn local_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |from: usize| u32::from_str_radix(address.get(from..from + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip: IpAddr = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// Does the socket on `one` keep `other` from being listened on?
fn meet(one: SocketAddr, other: SocketAddr) -> bool {
    let all = |address: SocketAddr| address.ip().is_unspecified();
    one.port() == other.port() && (all(one) || all(other) || one.ip().to_canonical() == other.ip().to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0000000000000000 20 4 30 10 -1
   2: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 812 1 0000000000000000 100 0 0 10 0
";
    const TCP6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr
   0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 99 1 0
";

    #[cfg(target_endian = "little")]
    #[test]
    fn listening_sockets_are_read() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(listeners(TCP), [(at("127.0.0.1:8080"), 4711), (at("0.0.0.0:80"), 812)]);
        assert_eq!(listeners(TCP6), [(at("[::1]:80"), 99)]);
    }

    #[test]
    fn a_socket_is_in_the_way_of_its_own_address_and_of_all() {
        // who listens, who wants to, is in the way
        let table = [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "[::]:80", true),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80", true),
        ];
        for (one, other, wanted) in table {
            assert_eq!(meet(one.parse().unwrap(), other.parse().unwrap()), wanted, "{one} {other}");
        }
    }

    proptest! {
        #[test]
        fn any_table_is_survived(table in "[0-9A-Fé: \n]{0,300}") {
            listeners(&table);
        }
    }
}
