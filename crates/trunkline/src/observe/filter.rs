//! Which observations, and which conversations, somebody wants to see.

use trunkline_core::Pattern;

use super::{ConversationState, Observation, What};

/// Which observations are wanted; what is not set does not matter.
#[derive(Debug, Clone, Default)]
pub struct ObservationFilter {
    /// Those of subjects that match.
    pub pattern: Option<Pattern>,
    /// Those of this conversation, by its id or its correlation id.
    pub conversation: Option<String>,
    /// Those of this persona.
    pub persona: Option<String>,
    /// Those of this tool.
    pub tool: Option<String>,
    /// Those of this skill.
    pub skill: Option<String>,
    /// Those of messages of this type.
    pub kind: Option<String>,
}

impl ObservationFilter {
    /// Whether it is wanted.
    pub fn admits(&self, seen: &Observation) -> bool {
        let is = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        let conversation =
            is(&self.conversation, &seen.conversation_id) || is(&self.conversation, &seen.correlation_id);
        conversation
            && is(&self.persona, &seen.persona_id)
            && is(&self.tool, &seen.tool_id)
            && is(&self.skill, &seen.skill_id)
            && is(&self.kind, &seen.kind)
            && self.pattern.as_ref().is_none_or(|pattern| is_on(pattern, seen))
    }
}

/// Whether it is of a subject that matches. What a gap left out may be on any that its subscription has.
fn is_on(pattern: &Pattern, seen: &Observation) -> bool {
    pattern.matches_str(&seen.subject)
        || seen.what == What::Gap
            && Pattern::new(seen.subject.as_str()).is_ok_and(|missed| missed.overlaps(pattern))
}

/// Which conversations are wanted; what is not set does not matter.
#[derive(Debug, Clone, Default)]
pub struct ConversationFilter {
    /// Those in which this persona was named.
    pub persona: Option<String>,
    /// Those in which this tool was named.
    pub tool: Option<String>,
    /// Those in which this skill was named.
    pub skill: Option<String>,
    /// Those with a message of this type.
    pub kind: Option<String>,
    /// Those that stand so.
    pub state: Option<ConversationState>,
}
