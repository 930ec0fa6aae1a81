// Hello is the demo's Wasm module: it says where it runs. As `sleep N` it stays for N seconds, for tests that need a pod in use.
package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

func main() {
	fmt.Printf("Hello from Wasm (%s/%s)", runtime.GOOS, runtime.GOARCH)
	if arguments := os.Args[min(1, len(os.Args)):]; len(arguments) > 0 {
		fmt.Printf(": %s", strings.Join(arguments, " "))
	}
	fmt.Println()
	if len(os.Args) == 3 && os.Args[1] == "sleep" {
		seconds, err := strconv.Atoi(os.Args[2])
		if err != nil {
			fmt.Fprintln(os.Stderr, "write sleep SECONDS:", err)
			os.Exit(2)
		}
		time.Sleep(time.Duration(seconds) * time.Second)
		fmt.Println("slept")
	}
}
