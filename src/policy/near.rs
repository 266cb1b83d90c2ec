//! Near misses, for the operator: which rule almost lets a refused flow through, and what would.

use super::{NearMiss, Policy};
use crate::identify::Claim;

pub(super) fn near_miss(policy: &Policy, claim: &Claim) -> Option<NearMiss> {
    let _ = (policy, claim);
    None
}
