// Carries out Go templates over chats as Ollama does (its template/template.go): messages of one role
// in a row are one, but for tools' answers, and tools are JSON. One job a line on standard input, the
// text as JSON on standard output.
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type Message struct {
	Role    string
	Content string
}
type Tools []map[string]any

func (t Tools) String() string { b, _ := json.Marshal(t); return string(b) }

type Job struct {
	Template string
	Messages []Message
	Tools    Tools
}

func main() {
	scanner := bufio.NewScanner(os.Stdin)
	scanner.Buffer(make([]byte, 1<<20), 1<<24)
	for scanner.Scan() {
		var job Job
		if err := json.Unmarshal(scanner.Bytes(), &job); err != nil {
			panic(err)
		}
		var merged []Message
		for _, m := range job.Messages {
			n := len(merged)
			if n > 0 && merged[n-1].Role == m.Role && m.Role != "tool" {
				merged[n-1].Content += "\n\n" + m.Content
			} else {
				merged = append(merged, m)
			}
		}
		var out strings.Builder
		t := template.Must(template.New("").Option("missingkey=zero").Parse(job.Template))
		if err := t.Execute(&out, map[string]any{"Messages": merged, "Tools": job.Tools}); err != nil {
			panic(err)
		}
		b, _ := json.Marshal(out.String())
		os.Stdout.Write(append(b, '\n'))
	}
}
