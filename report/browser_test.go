package report

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/loratool/loratool/finding"
)

// A browser is a headless Chromium that is spoken to over a pair of pipes (--remote-debugging-pipe).
type browser struct {
	t        *testing.T
	to       *os.File
	messages chan message
	id       int
	session  string
	console  []string // what the page said, and errors
	requests []string // what the page asked for
}

// A message is one of the DevTools protocol: an answer where ID is set, else an event.
type message struct {
	ID     int             `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  json.RawMessage `json:"error"`
}

// browserProgram finds Chromium or Chrome, or skips the test.
func browserProgram(t *testing.T) string {
	for _, name := range []string{os.Getenv("LORATOOL_CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if path, err := exec.LookPath(name); name != "" && err == nil {
			return path
		}
	}
	t.Skip("Chromium is not installed: the HTML report is NOT tested in a browser (LORATOOL_CHROMIUM=PATH names one)")
	return ""
}

// openBrowser starts Chromium with one blank page.
func openBrowser(t *testing.T) *browser {
	program := browserProgram(t)
	theirs, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	from, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	profile, err := os.MkdirTemp("", "loratool-chromium-")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
		"--disable-background-networking", "--remote-debugging-pipe", "--user-data-dir="+profile, "about:blank")
	cmd.ExtraFiles = []*os.File{theirs, theirOut} // 3: it reads, 4: it writes
	if err := cmd.Start(); err != nil {
		t.Skipf("Chromium does not start, the HTML report is NOT tested in a browser: %v", err)
	}
	theirs.Close()
	theirOut.Close()
	b := &browser{t: t, to: to, messages: make(chan message, 1000)}
	go func() {
		defer close(b.messages)
		r := bufio.NewReader(from)
		for {
			line, err := r.ReadBytes(0)
			if err != nil {
				return
			}
			var m message
			if json.Unmarshal(bytes.TrimSuffix(line, []byte{0}), &m) == nil {
				b.messages <- m
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		os.RemoveAll(profile) // what its children still hold is left to the system
		to.Close()
		from.Close()
	})
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Network", "Log"} {
		b.call(domain+".enable", map[string]any{}, nil)
	}
	return b
}

// next is the next message; events on what the page says and asks for are noted.
func (b *browser) next() message {
	b.t.Helper()
	select {
	case m, ok := <-b.messages:
		if !ok {
			b.t.Fatal("Chromium has ended")
		}
		switch m.Method {
		case "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded":
			b.console = append(b.console, string(m.Params))
		case "Network.requestWillBeSent":
			var p struct{ Request struct{ URL string } }
			_ = json.Unmarshal(m.Params, &p)
			b.requests = append(b.requests, p.Request.URL)
		}
		return m
	case <-time.After(60 * time.Second):
		b.t.Fatal("Chromium does not answer")
	}
	return message{}
}

// call runs a method of the protocol and decodes its result.
func (b *browser) call(method string, params map[string]any, result any) {
	b.t.Helper()
	b.id++
	request := map[string]any{"id": b.id, "method": method, "params": params}
	if b.session != "" {
		request["sessionId"] = b.session
	}
	p, err := json.Marshal(request)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.to.Write(append(p, 0)); err != nil {
		b.t.Fatal(err)
	}
	for {
		m := b.next()
		if m.ID != b.id {
			continue
		}
		if m.Error != nil {
			b.t.Fatalf("%s: %s", method, m.Error)
		}
		if result != nil {
			if err := json.Unmarshal(m.Result, result); err != nil {
				b.t.Fatal(err)
			}
		}
		return
	}
}

// open loads a file.
func (b *browser) open(path string) {
	b.call("Page.navigate", map[string]any{"url": "file://" + path}, nil)
	for b.next().Method != "Page.loadEventFired" {
	}
}

// eval is the value of a JavaScript expression.
func (b *browser) eval(expression string) string {
	b.t.Helper()
	var r struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails json.RawMessage
	}
	b.call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &r)
	if r.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", expression, r.ExceptionDetails)
	}
	return string(r.Result.Value)
}

// expect compares values of expressions.
func (b *browser) expect(expression, want string) {
	b.t.Helper()
	if got := b.eval(expression); got != want {
		b.t.Errorf("%s is %s, expected %s", expression, got, want)
	}
}

// painted is a summary of the pixels of a canvas: how many differ from its corner.
const painted = `[...document.querySelectorAll("canvas")].filter(c => {
	const p = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
	let n = 0;
	for (let i = 3; i < p.length; i += 4) if (p[i] > 0) n++;
	return n > 500;
}).length`

func TestHTMLInBrowser(t *testing.T) {
	b := openBrowser(t)
	r := sample(32, "</script><b id=evil>x", "lm_head")
	d := FromVerify(r)
	d.Known, d.Baseline = []finding.Finding{*finding.Warnf("numeric.nan_inf", "old.gguf", "NaN").In("old")}, true
	page, err := Render(HTML, d)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "report.html")
	if err := os.WriteFile(path, page, 0o666); err != nil {
		t.Fatal(err)
	}
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": 1300, "height": 2000, "deviceScaleFactor": 1, "mobile": false}, nil)
	for _, scheme := range []string{"light", "dark"} {
		b.call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
		b.open(path)
		b.expect(`document.title`, `"loratool verify: reject"`)
		b.expect(`document.querySelectorAll("#evil").length`, "0")
		b.expect(`document.querySelectorAll("#retention td:not(.none)").length`, "226")
		b.expect(`document.querySelectorAll("#retention td.bad").length`, "2")
		b.expect(`document.querySelectorAll("canvas").length`, "5")
		b.expect(painted, "5")
		b.expect(`document.querySelectorAll("#whole tbody tr").length`, "3")
		contrast(b, scheme)
		if dir := os.Getenv("LORATOOL_SCREENSHOTS"); dir != "" {
			var shot struct{ Data string }
			b.call("Page.captureScreenshot", map[string]any{"format": "png"}, &shot)
			png, _ := base64.StdEncoding.DecodeString(shot.Data)
			if err := os.WriteFile(filepath.Join(dir, "report-"+scheme+".png"), png, 0o666); err != nil {
				t.Fatal(err)
			}
		}
	}

	// A module's own figures, in the panel that a click on its name opens and closes.
	b.expect(`document.getElementById("detail").hidden`, "true")
	b.eval(`document.querySelectorAll("#modules button.show")[3].click(); 0`)
	b.expect(`document.querySelector("#detail h3").textContent`, `"model.layers.0.self_attn.o_proj.weight"`)
	b.expect(`document.querySelectorAll("#detail canvas").length`, "2")
	b.expect(painted, "7")
	b.eval(`document.querySelectorAll("#modules button.show")[224].click(); 0`)
	b.expect(`document.getElementById("singular").textContent`, `"Not measured."`)
	b.expect(`document.querySelectorAll("#modules tr[aria-selected]").length`, "1")
	b.eval(`document.querySelectorAll("#modules button.show")[224].click(); 0`)
	b.expect(`document.getElementById("detail").hidden`, "true")

	// Search: words in any order, in any column; the boxes filter too.
	visible := func(section string) string {
		return `[...document.querySelectorAll("#` + section + ` tbody tr")].filter(r => r.offsetHeight > 0).length`
	}
	search := func(section, text string) {
		b.eval(fmt.Sprintf(`{const i = document.querySelector("#%s input[type=search]"); i.value = %q; i.dispatchEvent(new Event("input"))}; 0`, section, text))
	}
	b.expect(visible("findings"), "7")
	search("findings", "LM_HEAD effect")
	b.expect(visible("findings"), "1")
	b.expect(`document.querySelector("#findings .shown").textContent`, `"1 of 7"`)
	search("findings", "")
	b.eval(`document.querySelector("#findings input[value=known]").click(); 0`)
	b.expect(visible("findings"), "6")
	search("modules", "layers.1.")
	b.expect(visible("modules"), "7")
	search("modules", "")
	b.eval(`document.querySelector("#modules input[value=pass]").click(); 0`)
	b.expect(visible("modules"), "2")
	b.eval(`document.querySelector("#modules input[value=pass]").click(); 0`)
	b.expect(visible("modules"), "226")

	// Sorting: by number up and down, and by text; nothing is lost.
	click := func(column int) {
		b.eval(fmt.Sprintf(`document.querySelectorAll("#modules th button")[%d].click(); 0`, column))
	}
	values := func(column int) string {
		return fmt.Sprintf(`JSON.stringify([...document.querySelectorAll("#modules tbody tr")].map(r => Number(r.cells[%d].dataset.value)))`, column)
	}
	ascending := func(column int, direction string) {
		t.Helper()
		var text string
		var v []float64
		if err := json.Unmarshal([]byte(b.eval(values(column))), &text); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			t.Fatal(err)
		}
		if len(v) != 226 {
			t.Errorf("%d rows", len(v))
		}
		for i := 1; i < len(v); i++ {
			if direction == "ascending" && v[i] < v[i-1] || direction == "descending" && v[i] > v[i-1] {
				t.Fatalf("column %d is not %s at row %d: %g, %g", column, direction, i, v[i-1], v[i])
			}
		}
		b.expect(fmt.Sprintf(`document.querySelectorAll("#modules th")[%d].getAttribute("aria-sort")`, column), `"`+direction+`"`)
	}
	for _, column := range []int{2, 3, 4, 5} {
		click(column)
		ascending(column, "ascending")
		click(column)
		ascending(column, "descending")
	}
	click(0)
	b.expect(`document.querySelector("#modules tbody tr").cells[0].textContent`, `"</script><b id=evil>x/t"`)
	b.expect(`document.querySelectorAll("#modules th[aria-sort]").length`, "1")

	// A right merge into float32: retention is the same everywhere, to the last digits.
	same := sample(4)
	for i := range same.Modules {
		same.Modules[i].Retention = 1 + 1e-9*float64(i%3)
	}
	second := filepath.Join(t.TempDir(), "same.html")
	if page, err = Render(HTML, FromVerify(same)); err == nil {
		err = os.WriteFile(second, page, 0o666)
	}
	if err != nil {
		t.Fatal(err)
	}
	b.open(second)
	b.expect(painted, "5")
	b.expect(`document.querySelector("#findings p").textContent`, `"None."`)

	// The page's policy keeps it from being talked into a request.
	if len(b.console) > 0 {
		t.Errorf("the console holds %s", strings.Join(b.console, "\n"))
	}
	for _, url := range b.requests {
		if url != "file://"+path && url != "file://"+second {
			t.Errorf("the page asked for %s", url)
		}
	}
	if len(b.requests) != 3 {
		t.Errorf("%d requests, expected one page twice and one once", len(b.requests))
	}
	b.eval(`window.refused = 0; document.addEventListener("securitypolicyviolation", () => refused++); document.body.append(Object.assign(new Image(), {src: "http://127.0.0.1:9/x.png"})); 0`)
	b.expect(`fetch("http://127.0.0.1:9/").then(() => "sent", () => new Promise(done => {
		const both = () => refused === 2 ? done("refused") : setTimeout(both, 20);
		both();
	}))`, `"refused"`)
}

// contrast requires that text can be read: at least 4.5 : 1 (WCAG AA) for what stands on a heat map's shades,
// on the cards and in the verdict.
func contrast(b *browser, scheme string) {
	b.t.Helper()
	got := b.eval(`JSON.stringify((() => {
		const rgb = s => s.match(/[\d.]+/g).slice(0, 3).map(Number);
		const lum = c => c.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
		const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (c !== "rgba(0, 0, 0, 0)") return c; } };
		const bad = new Set();
		const check = (e, what) => {
			const a = lum(rgb(getComputedStyle(e).color)), b = lum(rgb(behind(e)));
			const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
			if (ratio < 4.5) bad.add(what + " " + ratio.toFixed(2));
		};
		const cell = document.querySelector("#retention td");
		for (const kind of ["r0","r1","r2","r3","r4","r5","r6","r7","q0","q1","q2","q3","q4","q5","q6","q7","q8"]) { const was = cell.className; cell.className = kind; check(cell, kind); cell.className = was; }
		for (const e of document.querySelectorAll("h1, h2, p, .facts th, .facts td, .list th button, .list td, .hint, .shown, footer, .verdict, label")) check(e, e.tagName + "." + e.className);
		return [...bad];
	})())`)
	if got != `"[]"` {
		b.t.Errorf("%s: too little contrast: %s", scheme, got)
	}
}
