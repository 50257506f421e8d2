use std::fmt;

/// What is wrong with a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The link is down.
    NoLink,
    /// There were not enough answers yet since the link is up.
    Unproven,
    /// The others are answered. Dead.
    Silent,
    /// Nothing comes in, while there does on others. Dead.
    Deaf,
    /// It hears the others, which do not hear it. Dead.
    Unheard,
    /// The target answers on no member, which is judged no further.
    TargetSilent,
    /// No heartbeat gets from one member to another; it is judged no further.
    NoHeartbeats,
    /// Probes are not answered, but frames come in: a line that is very full, or a path that fails.
    FramesOnly,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoLink => "the link is down",
            Self::Unproven => "its path has not shown yet that it works",
            Self::Silent => {
                "probes are answered on other members, not on this one: check the switch it is cabled to, \
                 and the way on from there"
            }
            Self::Deaf => {
                "nothing comes in, while frames come in on other members: check the switch it is cabled to"
            }
            Self::Unheard => {
                "other members do not hear it, while frames come in on them: check the switch it is cabled \
                 to"
            }
            Self::TargetSilent => {
                "the target does not answer on any member: is it up, and in this VLAN?"
            }
            Self::NoHeartbeats => {
                "no heartbeat gets through between members: are they in one VLAN, and does the network \
                 pass frames to groups?"
            }
            Self::FramesOnly => {
                "probes are not answered, though frames come in: the line is full, or its path fails"
            }
        })
    }
}
