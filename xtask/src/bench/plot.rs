//! The ratios as one page: every round a dot, the median a bar, the aim a line.
//!
//! Not with a plotting crate: these draw axes and series, and this is a list whose rows have a name, a bar,
//! dots and words. The placing would stay, and a dozen crates would be compiled before any command of xtask
//! can run.

use std::path::{Path, PathBuf};

use super::Figure;
use crate::Result;

const WIDTH: f64 = 1180.0;
const ROW: f64 = 30.0;
/// The place where the names end and the scale begins.
const LEFT: f64 = 270.0;
/// The place where the scale ends and the words begin.
const RIGHT: f64 = 700.0;

/// Writes the page and its picture under a name, and returns the path of the page.
pub(crate) fn write(dir: &Path, name: &str, figures: &[Figure]) -> Result<PathBuf> {
    std::fs::create_dir_all(dir)?;
    let picture = svg(figures);
    std::fs::write(dir.join(format!("{name}.svg")), &picture)?;
    let page = dir.join(format!("{name}.html"));
    std::fs::write(&page, html(figures, &picture))?;
    Ok(page)
}

fn html(figures: &[Figure], picture: &str) -> String {
    let with_aim = figures.iter().filter(|figure| figure.at_most.or(figure.at_least).is_some());
    let (met, missed): (Vec<_>, Vec<_>) = with_aim.partition(|figure| figure.meets_its_aim());
    let missed: Vec<_> = missed.iter().map(|figure| escaped(&figure.name)).collect();
    let verdict = match missed.len() {
        0 => format!("Aims met: all {}.", met.len()),
        count => format!("Aims met: {}. Missed: {count} ({}).", met.len(), missed.join(", ")),
    };
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>Ratios</title>\n<style>body {{ font: 15px/1.5 sans-serif; margin: 2em; color: #222 }} \
         svg {{ max-width: 100%; height: auto }}</style>\n<h1>Ratios</h1>\n<p>{verdict}</p>\n\
         <p>A bar is the median of the rounds, a dot is a round, a dashed line is the aim. Green meets its aim, red misses it, grey has \
         none. Rounds beyond the scale are at its end.</p>\n{picture}\n</html>\n"
    )
}

/// Figures that share a scale.
struct Section<'a> {
    title: &'static str,
    figures: Vec<&'a Figure>,
}

fn sections(figures: &[Figure]) -> Vec<Section<'_>> {
    let is_gain = |figure: &&Figure| {
        figure.at_least.is_some()
            || figure.name.contains("_vs_tower_sessions")
            || figure.what.starts_with("against ")
    };
    let (gains, costs): (Vec<_>, Vec<_>) = figures.iter().partition(is_gain);
    let sections = [
        Section { title: "Less is better: 1 is what the parts cost alone", figures: costs },
        Section { title: "More is better: 1 is what it is compared with", figures: gains },
    ];
    sections.into_iter().filter(|section| !section.figures.is_empty()).collect()
}

fn svg(figures: &[Figure]) -> String {
    let mut shapes = String::new();
    let mut top = 0.0;
    for section in sections(figures) {
        top = draw(&section, top, &mut shapes);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top}\" width=\"{WIDTH}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#222\">\n<rect width=\"{WIDTH}\" height=\"{top}\" fill=\"white\"/>\n{shapes}</svg>\n"
    )
}

/// Draws a section from `top` down, and returns its lower end.
fn draw(section: &Section<'_>, mut top: f64, shapes: &mut String) -> f64 {
    // Medians and aims are all on the scale; single rounds need not be.
    let values =
        section.figures.iter().flat_map(|figure| [Some(figure.value), figure.at_most, figure.at_least]);
    let end = values.flatten().fold(1.0, f64::max) * 1.05;
    let x = |value: f64| LEFT + (value / end).min(1.0) * (RIGHT - LEFT);
    shapes.push_str(&format!(
        "<text x=\"0\" y=\"{:.1}\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
        top + 22.0,
        section.title
    ));
    top += ROW + 10.0;
    let bottom = top + ROW * section.figures.len() as f64;
    shapes.push_str(&format!(
        "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\" stroke=\"#999\"/>\n",
        x(1.0)
    ));
    for figure in &section.figures {
        row(figure, top, &x, shapes);
        top += ROW;
    }
    bottom + ROW / 2.0
}

fn row(figure: &Figure, top: f64, x: &impl Fn(f64) -> f64, shapes: &mut String) {
    let aim = figure.at_most.or(figure.at_least);
    let color = match aim {
        None => "#607d8b",
        Some(_) if figure.meets_its_aim() => "#2e7d32",
        Some(_) => "#b00020",
    };
    let middle = top + ROW / 2.0;
    shapes.push_str(&format!(
        "<text x=\"0\" y=\"{text:.1}\">{}</text>\n<text x=\"{:.1}\" y=\"{text:.1}\" text-anchor=\"end\" fill=\"{color}\" \
         font-weight=\"bold\">{:.2}</text>\n<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{color}\" \
         fill-opacity=\"0.3\"/>\n<text x=\"{:.1}\" y=\"{text:.1}\" font-size=\"11\"><tspan font-weight=\"bold\">{}</tspan> {}</text>\n",
        escaped(&figure.name),
        LEFT - 10.0,
        figure.value,
        top + 5.0,
        x(figure.value) - LEFT,
        ROW - 10.0,
        RIGHT + 12.0,
        escaped(&figure.aim()),
        escaped(&figure.what),
        text = middle + 4.0,
    ));
    for round in &figure.rounds {
        shapes.push_str(&format!(
            "<circle cx=\"{:.1}\" cy=\"{middle:.1}\" r=\"2.5\" fill=\"{color}\" fill-opacity=\"0.6\"/>\n",
            x(*round)
        ));
    }
    if let Some(aim) = aim {
        shapes.push_str(&format!(
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1:.1}\" y2=\"{2:.1}\" stroke=\"black\" stroke-width=\"1.5\" \
             stroke-dasharray=\"3\"/>\n",
            x(aim),
            top + 2.0,
            top + ROW - 2.0,
        ));
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::tests::figure;
    use super::*;

    #[test]
    fn every_round_is_a_dot_and_a_missed_aim_is_marked() {
        let figures = [figure("met", 1.0, Some(1.2)), figure("missed", 1.5, Some(1.2))];
        let page = html(&figures, &svg(&figures));
        assert_eq!(page.matches("<circle").count(), 6);
        assert_eq!(page.matches("stroke-dasharray").count(), 2);
        assert!(page.contains("Aims met: 1. Missed: 1 (missed)."), "{page}");
        assert!(page.contains("this against &lt;that&gt;"));
    }
}
