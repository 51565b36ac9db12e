//! Suggests the name that a mistyped one was probably meant to be.

/// Returns the one of `names` that is most similar to `given`, or `None` if
/// all of them differ from it in more than a third of its letters.
pub(crate) fn nearest<'n>(
    given: &str,
    names: impl IntoIterator<Item = &'n str>,
) -> Option<&'n str> {
    let max_distance = given.chars().count().div_ceil(3);
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(given, name), name))
        .filter(|(distance, _)| *distance <= max_distance)
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_name_has_a_suggestion_and_an_unrelated_one_has_none() {
        assert_eq!(nearest("bokk", ["tale", "book"]), Some("book"));
        assert_eq!(nearest("xyz", ["tale", "book"]), None);
    }
}
