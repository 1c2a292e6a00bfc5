//! What the programs count. Append only: numbers are part of the ABI.

macro_rules! counters {
    ($($name:ident = $number:literal, $label:literal, $text:literal;)+) => {
        $(#[doc = $text] pub const $name: u32 = $number;)+
        /// Number, label and meaning of every counter.
        pub const ALL: &[(u32, &str, &str)] = &[$(($number, $label, $text)),+];
    };
}

counters! {
    CONNECT_TRANSLATED = 0, "connect_translated", "connect() to a service sent to an endpoint";
    CONNECT_REJECTED = 1, "connect_rejected", "connect() to a service without endpoints, or to an undefined port, refused";
    SENDMSG_TRANSLATED = 2, "sendmsg_translated", "datagram of an unconnected socket sent to an endpoint";
    SENDMSG_REJECTED = 3, "sendmsg_rejected", "datagram of an unconnected socket refused";
    FLOW_CREATED = 4, "flow_created", "packet flow opened";
    FLOW_EXPIRED = 5, "flow_expired", "packet flow ended by its timeout";
    FLOW_TABLE_FULL = 6, "flow_table_full", "packet dropped as its flow found no room";
    FLOW_MOVED = 7, "flow_moved", "UDP flow sent to another endpoint as its own is gone";
    REPLY_CONFLICT = 8, "reply_conflict", "another port or endpoint chosen as the reply's key was taken";
    PACKET_REJECTED = 9, "packet_rejected", "packet answered with RST or port-unreachable";
    PACKET_DROPPED = 10, "packet_dropped", "packet dropped by a traffic policy";
    CIDR_DROPPED = 11, "cidr_dropped", "packet to a free address of a service CIDR dropped";
    SOURCE_RANGE_DROPPED = 12, "source_range_dropped", "packet from outside the source ranges dropped";
    REDIRECT_DROPPED = 13, "redirect_dropped", "ICMP redirect about a translated flow dropped";
    TOMBSTONE_REJECTED = 14, "tombstone_rejected", "packet to a vanished endpoint answered with port-unreachable";
    MALFORMED = 15, "malformed", "packet passed untouched as it could not be parsed";
    FRAGMENT_UNKNOWN = 16, "fragment_unknown", "fragment passed untouched as its first one was not seen";
    AFFINITY_FULL = 17, "affinity_full", "client not remembered as the affinity table is full";
    FRONTEND_RETRY = 18, "frontend_retry", "frontend read again as it changed under the reader";
    SOCKET_PAIR_LOST = 19, "socket_pair_lost", "reply address of an unconnected socket not remembered";
    REPLY_UNTRANSLATED = 20, "reply_untranslated", "reply of a live flow dropped as it could not be translated back";
    NO_ENDPOINT = 22, "no_endpoint", "endpoint record missing behind a frontend; the packet was dropped";
    NO_SOURCE_ADDRESS = 23, "no_source_address", "packet dropped as no address of this node is known to masquerade it with";
    STRAY_DROPPED = 24, "stray_dropped", "packet to a service address that nobody translated kept from leaving the node";
    FLOW_DISPLACED = 40, "flow_displaced", "flow whose client had not shown that it gets answers ended early, as newer ones need its place";
    DIRECT_RENUMBERED = 41, "direct_renumbered", "connection straight to an endpoint given another port, as a flow through a service has its own";
    FLOW_STEPPED_ASIDE = 42, "flow_stepped_aside", "new flow given another port, as its client speaks to the endpoint directly from its own";
    ICMP_TRANSLATED = 21, "icmp_translated", "ICMP error about a translated flow translated";
}

/// Slots of the table.
pub const COUNTERS: u32 = 64;
