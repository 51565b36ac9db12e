//! Defines the flag for characters that the model does not know.

use charlstm_proto::v1::UnknownCharacters;
use clap::ValueEnum;

use crate::display;

/// What happens to characters of a text that the model does not know.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum Unknown {
    /// The command fails
    #[default]
    Error,
    /// They are left out
    Skip,
    /// Each is replaced by the most frequent character of the model's text
    Replace,
}

impl Unknown {
    /// Converts the flag to the enum of the contract.
    pub(crate) fn to_contract(self) -> UnknownCharacters {
        match self {
            Self::Error => UnknownCharacters::Error,
            Self::Skip => UnknownCharacters::Skip,
            Self::Replace => UnknownCharacters::Replace,
        }
    }

    /// Returns the value of the flag.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Skip => "skip",
            Self::Replace => "replace",
        }
    }

    /// Describes what happened to `count` unknown characters of `text`; `None`
    /// if there were none.
    pub(crate) fn message(self, count: u64, text: &str) -> Option<String> {
        let action = match self {
            Self::Skip => "skipped",
            Self::Error | Self::Replace => "replaced",
        };
        (count > 0).then(|| {
            let characters = display::plural(count, "character");
            format!("{action} {characters} of {text} that the model does not know")
        })
    }
}
