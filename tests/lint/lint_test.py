#!/usr/bin/env python3
"""Each check finds what it is there for, and lets good code pass."""

import os
import shutil
import tempfile
import unittest

import check_format
import check_layers
import check_registered
import check_size
import check_waits
import check_words


class LintTest(unittest.TestCase):

    def setUp(self):
        self.root = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.root)

    def write(self, name, text):
        path = os.path.join(self.root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as out:
            out.write(text)

    def findings(self, check, name, text):
        self.write(name, text)
        found = check.check(self.root)
        os.remove(os.path.join(self.root, name))
        return found

    def includes(self, name, header):
        return len(self.findings(check_layers, name, f"#include {header}\n"))

    def test_includes_go_down(self):
        self.assertEqual(self.includes("layer/a.cc", '"base/status.h"'), 0)
        self.assertEqual(self.includes("daemon/a.cc", '"fuse/server.h"'), 0)
        self.assertEqual(self.includes("layer/a.cc", '"layer/tree.h"'), 0)
        self.assertEqual(self.includes("base/a.h", '"oci/layout.h"'), 1)
        self.assertEqual(self.includes("contentstore/a.h", '"fuse/server.h"'), 1)

    def test_neighbours_do_not_meet(self):
        self.assertEqual(self.includes("layer/a.cc", '"registry/client.h"'), 1)
        self.assertEqual(self.includes("registry/a.cc", '"layer/tree.h"'), 1)
        self.assertEqual(self.includes("fuse/a.cc", '"exporter/push.h"'), 1)
        self.assertEqual(self.includes("exporter/a.cc", '"fuse/server.h"'), 1)

    def test_internal_headers_are_private(self):
        self.assertEqual(self.includes("layer/a.cc", '"layer/internal/x.h"'), 0)
        self.assertEqual(self.includes("tests/layer/a_test.cc", '"layer/internal/x.h"'), 0)
        self.assertEqual(self.includes("tests/fuse/a_test.cc", '"layer/internal/x.h"'), 1)
        self.assertEqual(self.includes("contentstore/a.cc", '"layer/internal/x.h"'), 1)

    def test_third_party_headers_stay_at_home(self):
        self.assertEqual(self.includes("registry/a.cc", "<curl/curl.h>"), 0)
        self.assertEqual(self.includes("contentstore/a.cc", "<curl/curl.h>"), 1)
        self.assertEqual(self.includes("fuse/a.cc", "<fuse_lowlevel.h>"), 0)
        self.assertEqual(self.includes("daemon/a.cc", "<fuse_lowlevel.h>"), 1)
        self.assertEqual(self.includes("fuse/a.cc", '"fuse/fuse_errno.h"'), 0)
        self.assertEqual(self.includes("daemon/control_service.cc", "<grpcpp/grpcpp.h>"), 0)
        self.assertEqual(self.includes("daemon/mounts.cc", "<grpcpp/grpcpp.h>"), 1)
        self.assertEqual(self.includes("daemon/mounts.cc", '"proto/snapshots.grpc.pb.h"'), 1)
        self.assertEqual(self.includes("daemon/mounts.cc", '"proto/snapshots.pb.h"'), 0)
        self.assertEqual(self.includes("snapshotter/snapshots_service.cc", '"proto/snapshots.grpc.pb.h"'), 0)
        self.assertEqual(self.includes("daemon/mounts.cc", '"tests/support/gate.h"'), 1)

    def test_sqlite_has_one_file(self):
        self.assertEqual(self.includes("base/sqlite.cc", "<sqlite3.h>"), 0)
        self.assertEqual(self.includes("snapshotter/b.cc", "<sqlite3.h>"), 1)

    def test_a_test_that_never_runs_is_found(self):
        self.write("tests/base/CMakeLists.txt", "lazyblob_test(a_test SRCS a_test.cc)\n# lazyblob_test(b_test.cc)\n")
        self.assertEqual(self.findings(check_registered, "tests/base/a_test.cc", ""), [])
        self.assertEqual(len(self.findings(check_registered, "tests/base/b_test.cc", "")), 1)
        self.assertEqual(len(self.findings(check_registered, "tests/base/aa_test.cc", "")), 1)
        self.assertEqual(len(self.findings(check_registered, "tests/fuzz/tar_fuzz.cc", "")), 1)
        self.assertEqual(len(self.findings(check_registered, "tests/e2e/x_test.sh", "")), 1)

    def test_loops_register_what_they_name(self):
        self.write("tests/base/CMakeLists.txt",
                   "foreach(name a b # c\n)\n  lazyblob_test(${name}_test SRCS ${name}_test.cc)\nendforeach()\n")
        self.assertEqual(self.findings(check_registered, "tests/base/b_test.cc", ""), [])
        self.assertEqual(len(self.findings(check_registered, "tests/base/c_test.cc", "")), 1)

    def test_data_that_no_test_reads_is_found(self):
        self.write("tests/fuzz/CMakeLists.txt", "lazyblob_fuzzer(tar_fuzz SRCS tar_fuzz.cc CORPUS corpus/tar)\n")
        self.assertEqual(self.findings(check_registered, "tests/fuzz/corpus/tar/1", "x"), [])
        self.assertEqual(len(self.findings(check_registered, "tests/fuzz/corpus/old/1", "x")), 1)
        self.write("tests/layer/index_test.cc", 'Open("golden/v1.idx")')
        self.write("tests/layer/CMakeLists.txt", "index_test.cc")
        self.assertEqual(self.findings(check_registered, "tests/layer/golden/v1.idx", "x"), [])
        self.assertEqual(len(self.findings(check_registered, "tests/layer/golden/v0.idx", "x")), 1)

    def test_long_files_are_found(self):
        self.assertEqual(self.findings(check_size, "base/a.cc", "// x\n" * 600), [])
        self.assertEqual(len(self.findings(check_size, "base/a.cc", "// x\n" * 601)), 1)
        self.assertEqual(self.findings(check_size, "base/a.h", "// x\n" * 300), [])
        self.assertEqual(len(self.findings(check_size, "base/a.h", "// x\n" * 301)), 1)

    def test_long_functions_are_found(self):
        shapes = {
            "F": "int F(int a) {\n%s}\n",
            "C::M": "namespace a {\nint C::M() const ABSL_LOCKS_EXCLUDED(m_) {\n%s}\n}\n",
            "G": "struct S {\n  S() : a_{1}, b_(2) {}\n  int G() {\n%s  }\n  int a_;\n};\n",
            "C": "C::C(int a) : a_{a}, b_(std::move(a)) {\n%s}\n",
            "D": "int D(int a, const T& b = {}) {\n%s}\n",
            "Stat": "struct stat Stat(int a) {\n%s}\n",
            "Fuzz": 'extern "C" int Fuzz(int a) {\n%s}\n',
            "H": 'extern "C" {\nclass ABSL_LOCKABLE(x) S final : public T {\n  int H() {\n%s  }\n};\n}\n',
            "TEST_F": 'TEST_F(A, B) {\n  const char* s = "} {";  // }\n%s}\n',
        }
        for name, shape in shapes.items():
            body = 78 if name != "TEST_F" else 77
            self.assertEqual(self.findings(check_size, "a.cc", shape % ("  x();\n" * body)), [], name)
            found = self.findings(check_size, "a.cc", shape % ("  x();\n" * 79))
            self.assertEqual(len(found), 1, name)
            self.assertIn(name, found[0])
        data = "const int kTable[] = {\n" + "  1,\n" * 100 + "};\n"
        self.assertEqual(self.findings(check_size, "a.cc", data), [])
        self.assertEqual(self.findings(check_size, "a.cc", "class A {\n" + "  int F();\n" * 100 + "};\n"), [])

    def test_an_exception_needs_reason_and_use(self):
        self.write("tests/lint/size_exceptions.txt", "# comment\na.cc generated by hand from a table\n")
        self.assertEqual(self.findings(check_size, "a.cc", "// x\n" * 700), [])
        self.assertEqual(len(check_size.check(self.root)), 1)
        self.write("tests/lint/size_exceptions.txt", "a.cc\n")
        self.assertEqual(len(self.findings(check_size, "a.cc", "// x\n" * 700)), 2)

    def test_unformatted_code_is_found(self):
        self.write(".clang-format", "BasedOnStyle: Google\n")
        self.assertEqual(self.findings(check_format, "a.cc", "int a = 1;\n"), [])
        self.assertEqual(len(self.findings(check_format, "a.cc", "int  a=1;\n")), 1)

    def test_deadlines_on_the_wall_clock_are_found(self):
        for bad in ("mutex_.AwaitWithTimeout(absl::Condition(&x), wait);", "c.WaitWithDeadline(&mutex_, t);",
                    "done.WaitForNotificationWithTimeout(wait);", "std::condition_variable changed_;",
                    "context.set_deadline(std::chrono::system_clock::now() + 1s);",
                    "context.set_deadline(absl::ToChronoTime(time));", "sem_timedwait(&s, &t);"):
            self.assertEqual(len(self.findings(check_waits, "daemon/a.cc", bad + "\n")), 1, bad)
            self.assertEqual(self.findings(check_waits, "tests/daemon/a.cc", bad + "\n"), [], bad)
            self.assertEqual(self.findings(check_waits, "base/cond_var.h", bad + "\n"), [], bad)
        for good in ("mutex_.Await(absl::Condition(&x));", "changed_.WaitFor(&mutex_, wait);", "// no WaitWithTimeout()",
                     "set_deadline(gpr_time_from_millis(1, GPR_TIMESPAN));", "absl::ToChronoNanoseconds(wait);"):
            self.assertEqual(self.findings(check_waits, "daemon/a.cc", good + "\n"), [], good)

    def test_words_are_found(self):
        for bad in ("cd /work/main", "// TODO(me): later", "see issue 12", "in this session", "as design.md says"):
            self.assertEqual(len(self.findings(check_words, "a.cc", bad + "\n")), 1, bad)
        for good in ("one FUSE session", "network/worker", "docs/design.md", "fuse_session_new", "the issue of locks"):
            self.assertEqual(self.findings(check_words, "a.cc", good + "\n"), [], good)


if __name__ == "__main__":
    unittest.main()
