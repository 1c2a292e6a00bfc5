//! Addresses that NodePorts are served on (`--nodeport-addresses`, spec §1.G).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::Refused;
use crate::snapshot::{Cidr, Family};
use crate::source::address::parse_cidr;

/// Which addresses of this node NodePorts are served on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodePortAddresses {
    /// Empty: the default, as [`Entry::Primary`].
    entries: Vec<Entry>,
}

/// What "localhost" is.
const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entry {
    /// The Node's primary address of each family (G2).
    Primary,
    /// Every address of every device but loopback (G4).
    All,
    /// `127.0.0.1` and `::1`, for this node's own processes (G9).
    Localhost,
    /// Addresses in a prefix (G1).
    In(Cidr),
}

impl NodePortAddresses {
    /// Those of `own`, the routable addresses of this node's devices, and of `primary` that are meant.
    pub fn select(&self, primary: &[IpAddr], own: &[IpAddr]) -> Vec<IpAddr> {
        let mut chosen = Vec::new();
        for family in [Family::V4, Family::V6] {
            let wanted = self.of(family);
            let of_family = |list: &[IpAddr]| -> Vec<IpAddr> {
                list.iter()
                    .copied()
                    .filter(|address| Family::of(*address) == family)
                    .collect()
            };
            for entry in wanted {
                match entry {
                    Entry::Primary => chosen.extend(of_family(primary)),
                    Entry::All => chosen.extend(of_family(own)),
                    Entry::Localhost => {}
                    Entry::In(range) => {
                        let own = of_family(own).into_iter();
                        chosen.extend(own.filter(|address| range.contains(*address)));
                    }
                }
            }
        }
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }

    /// The loopback addresses that are meant: those that the list names, by the keyword or by a prefix. "All"
    /// addresses, however said, leave them out (G9).
    pub fn loopback(&self) -> Vec<IpAddr> {
        let named = |address: &IpAddr| {
            self.entries.iter().any(|entry| match entry {
                Entry::Localhost => true,
                Entry::In(range) => range.length != 0 && range.contains(*address),
                Entry::Primary | Entry::All => false,
            })
        };
        LOOPBACK.into_iter().filter(named).collect()
    }

    /// Whether a family's list leaves out some addresses, as the default does: health-check ports are then opened on
    /// the addresses meant, else on all (H6).
    pub fn restricts(&self, family: Family) -> bool {
        !self.of(family).contains(&Entry::All)
    }

    /// The entries of a family. A list without one for a family means all of that family, as does a prefix of
    /// length zero (G1).
    fn of(&self, family: Family) -> Vec<Entry> {
        if self.entries.is_empty() {
            return vec![Entry::Primary];
        }
        let of_family = self.entries.iter().filter_map(|entry| match entry {
            Entry::In(range) if Family::of(range.address) != family => None,
            Entry::In(range) if range.length == 0 => Some(Entry::All),
            entry => Some(*entry),
        });
        let wanted: Vec<Entry> = of_family.collect();
        if wanted.is_empty() {
            vec![Entry::All]
        } else {
            wanted
        }
    }
}

impl FromStr for NodePortAddresses {
    type Err = Refused;

    fn from_str(text: &str) -> Result<Self, Refused> {
        let words = text.split(',').map(str::trim).filter(|w| !w.is_empty());
        let entries = words.map(|word| match word {
            "primary" => Ok(Entry::Primary),
            "all" => Ok(Entry::All),
            "localhost" => Ok(Entry::Localhost),
            _ => parse_cidr(word).map(Entry::In).ok_or_else(|| {
                Refused(format!(
                    "{word:?} is no address prefix; expected primary, all, localhost, or prefixes like \
                     192.0.2.0/24,2001:db8::/64"
                ))
            }),
        });
        Ok(Self {
            entries: entries.collect::<Result<_, _>>()?,
        })
    }
}

impl fmt::Display for NodePortAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.entries.is_empty() {
            return f.write_str("primary");
        }
        for (index, entry) in self.entries.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match entry {
                Entry::Primary => f.write_str("primary")?,
                Entry::All => f.write_str("all")?,
                Entry::Localhost => f.write_str("localhost")?,
                Entry::In(range) => write!(f, "{range}")?,
            }
        }
        Ok(())
    }
}

impl Serialize for NodePortAddresses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(list: &str) -> Vec<String> {
        let parse = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let primary = parse(&["192.0.2.1", "2001:db8::1"]);
        let own = parse(&[
            "192.0.2.1",
            "192.0.2.2",
            "198.51.100.1",
            "2001:db8::1",
            "2001:db8:1::1",
        ]);
        let addresses: NodePortAddresses = list.parse().unwrap();
        let chosen = addresses.select(&primary, &own);
        chosen.iter().map(IpAddr::to_string).collect()
    }

    /// Spec G2.
    #[test]
    fn the_primary_addresses_are_the_default() {
        assert_eq!(chosen(""), ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(chosen("primary"), chosen(""));
    }

    /// Spec G1.
    #[test]
    fn a_list_without_an_entry_for_a_family_means_all_of_it() {
        assert_eq!(
            chosen("192.0.2.0/24"),
            ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:1::1"]
        );
    }

    /// Spec G3.
    #[test]
    fn prefixes_and_keywords_mix() {
        assert_eq!(
            chosen("primary,198.51.100.0/24"),
            ["192.0.2.1", "198.51.100.1", "2001:db8::1"]
        );
        assert_eq!(chosen("all").len(), 5);
        assert_eq!(chosen("0.0.0.0/0,2001:db8:1::/64").len(), 4);
    }

    /// Spec G9.
    #[test]
    fn localhost_alone_serves_nobody_else() {
        assert!(chosen("localhost").is_empty());
    }

    #[test]
    fn loopback_addresses_are_served_where_the_list_names_them() {
        let loopback = |list: &str| {
            let addresses: NodePortAddresses = list.parse().unwrap();
            let chosen = addresses.loopback();
            chosen.iter().map(IpAddr::to_string).collect::<Vec<_>>()
        };
        assert_eq!(loopback("primary,localhost"), ["127.0.0.1", "::1"]);
        assert_eq!(loopback("127.0.0.0/8,10.0.0.0/8"), ["127.0.0.1"]);
        assert_eq!(loopback("::1/128"), ["::1"]);
        for others in ["", "all", "primary", "0.0.0.0/0,::/0"] {
            assert!(loopback(others).is_empty(), "{others}");
        }
    }

    #[test]
    fn a_list_restricts_unless_it_means_all() {
        let list = |text: &str| text.parse::<NodePortAddresses>().unwrap();
        assert!(list("").restricts(Family::V4));
        assert!(!list("all").restricts(Family::V4));
        assert!(list("192.0.2.0/24").restricts(Family::V4));
        assert!(!list("192.0.2.0/24").restricts(Family::V6));
        assert!(list("primary").restricts(Family::V6));
    }

    #[test]
    fn nonsense_is_refused() {
        for wrong in ["eth0", "192.0.2.0/33", "192.0.2.1", "all,x"] {
            assert!(wrong.parse::<NodePortAddresses>().is_err(), "{wrong}");
        }
        assert_eq!(
            "all, 10.0.0.0/8"
                .parse::<NodePortAddresses>()
                .unwrap()
                .to_string(),
            "all,10.0.0.0/8"
        );
    }
}
