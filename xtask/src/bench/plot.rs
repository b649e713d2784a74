//! The ratios as one page with a picture of each: every round a dot, the median a line, the aim another.

use std::path::{Path, PathBuf};

use super::Figure;
use crate::Result;

const WIDTH: f64 = 640.0;
const ROW: f64 = 44.0;
/// Where the names end and the scale begins.
const LEFT: f64 = 250.0;

/// Writes the page; where it is.
pub(crate) fn write(dir: &Path, figures: &[Figure]) -> Result<PathBuf> {
    std::fs::create_dir_all(dir)?;
    let picture = svg(figures);
    std::fs::write(dir.join("ratios.svg"), &picture)?;
    let page = dir.join("ratios.html");
    std::fs::write(&page, html(figures, &picture))?;
    Ok(page)
}

fn html(figures: &[Figure], picture: &str) -> String {
    let mut rows = String::new();
    for figure in figures {
        let class = if figure.meets_its_aim() { "" } else { " class=\"missed\"" };
        rows.push_str(&format!(
            "<tr{class}><td>{}</td><td>{:.3}</td><td>{}</td><td>{}</td></tr>\n",
            escaped(&figure.name),
            figure.value,
            escaped(&figure.aim()),
            escaped(&figure.what)
        ));
    }
    format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>Ratios</title>\n<style>body {{ font: 14px sans-serif }} \
         td {{ padding: 2px 10px }} .missed {{ color: #b00020 }}</style>\n<h1>Ratios</h1>\n\
         <p>A dot is a round, the bar the median, the dashed line the aim.</p>\n{picture}\n<table>\n{rows}</table>\n"
    )
}

/// Each ratio has a scale of its own, from zero to a little more than its largest round or its aim.
fn svg(figures: &[Figure]) -> String {
    let height = ROW * figures.len() as f64;
    let mut shapes = String::new();
    for (row, figure) in figures.iter().enumerate() {
        let top = ROW * row as f64;
        let aim = figure.at_most.or(figure.at_least);
        let largest = figure.rounds.iter().copied().chain(aim).fold(figure.value, f64::max);
        let x = |value: f64| LEFT + value / (largest * 1.1).max(f64::MIN_POSITIVE) * (WIDTH - LEFT);
        let (middle, bottom) = (top + ROW / 2.0, top + ROW - 8.0);
        let color = if figure.meets_its_aim() { "#2e7d32" } else { "#b00020" };
        shapes.push_str(&format!(
            "<text x=\"0\" y=\"{:.1}\">{} = {:.2}</text>\n<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" \
             fill=\"{color}\" fill-opacity=\"0.35\"/>\n",
            middle + 4.0,
            escaped(&figure.name),
            figure.value,
            top + 8.0,
            x(figure.value) - LEFT,
            ROW - 16.0,
        ));
        for round in &figure.rounds {
            shapes.push_str(&format!(
                "<circle cx=\"{:.1}\" cy=\"{middle:.1}\" r=\"2.5\" fill=\"{color}\"/>\n",
                x(*round)
            ));
        }
        if let Some(aim) = aim {
            shapes.push_str(&format!(
                "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1:.1}\" y2=\"{bottom:.1}\" stroke=\"black\" stroke-dasharray=\"3\"/>\n",
                x(aim),
                top + 8.0,
            ));
        }
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n{shapes}</svg>\n"
    )
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
        assert_eq!(page.matches("class=\"missed\"").count(), 1);
        assert!(page.contains("this against &lt;that&gt;"));
    }
}
