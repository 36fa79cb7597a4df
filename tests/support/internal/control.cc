#include "tests/support/internal/control.h"

#include <functional>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/json.h"
#include "base/status.h"

namespace lazyblob::support::internal {
namespace {

using nlohmann::json;

constexpr char kPrefix[] = "/_test/";
constexpr uint64_t kMaxText = 1 << 20;

using Setters = std::map<std::string, std::function<void(const json&)>>;

// A setter that puts a JSON value into `target`.
template <typename T>
std::function<void(const json&)> Into(T* target) {
  return [target](const json& value) { *target = value.get<T>(); };
}
template <typename T>
std::function<void(const json&)> Into(std::optional<T>* target) {
  return [target](const json& value) { *target = value.get<T>(); };
}
std::function<void(const json&)> Into(absl::Duration* milliseconds) {
  return [milliseconds](const json& value) { *milliseconds = absl::Milliseconds(value.get<double>()); };
}

// Unknown members and wrong types are errors: a rule that does nothing makes a test that cannot fail.
absl::Status Fill(const json& object, const Setters& setters) {
  if (!object.is_object()) return absl::InvalidArgumentError("not a JSON object");
  for (const auto& [name, value] : object.items()) {
    const auto setter = setters.find(name);
    if (setter == setters.end()) return absl::InvalidArgumentError(absl::StrCat("unknown member: ", name));
    try {
      setter->second(value);
    } catch (const json::exception& error) {
      return absl::InvalidArgumentError(absl::StrCat(name, ": ", error.what()));
    }
  }
  return absl::OkStatus();
}

json LogLine(const LoggedRequest& request) {
  return {{"connection", request.connection},
          {"cdn", request.cdn},
          {"method", request.method},
          {"path", request.path},
          {"query", request.query},
          {"range", request.range},
          {"authorization", request.authorization},
          {"headers", request.headers},
          {"status", request.status},
          {"body_bytes", request.body_bytes},
          {"received_bytes", request.received_bytes},
          {"longest_gap_ms", absl::ToDoubleMilliseconds(request.longest_gap)},
          {"finished", request.finished},
          {"complete", request.complete}};
}

absl::StatusOr<AuthOptions> AuthFrom(const json& object) {
  AuthOptions auth;
  const auto set_kind = [&auth](const json& value) {
    const std::string kind = value.get<std::string>();
    auth.kind = kind == "bearer"  ? AuthOptions::Kind::kBearer
                : kind == "basic" ? AuthOptions::Kind::kBasic
                                  : AuthOptions::Kind::kNone;
  };
  RETURN_IF_ERROR(Fill(object, {{"kind", set_kind},
                                {"username", Into(&auth.username)},
                                {"password", Into(&auth.password)},
                                {"identity_token", Into(&auth.identity_token)},
                                {"token_ttl_ms", Into(&auth.token_ttl)},
                                {"state_expires_in", Into(&auth.state_expires_in)},
                                {"realm", Into(&auth.realm)},
                                {"first_scope_only", Into(&auth.first_scope_only)},
                                {"refuses_many_scopes", Into(&auth.refuses_many_scopes)},
                                {"never_granted", Into(&auth.never_granted)},
                                {"service", Into(&auth.service)}}));
  return auth;
}

absl::StatusOr<UploadOptions> UploadsFrom(const json& object) {
  UploadOptions uploads;
  AuthOptions unused;
  std::vector<std::string> personalities;
  RETURN_IF_ERROR(Fill(object, {{"personalities", Into(&personalities)},
                                {"directory", Into(&uploads.directory)},
                                {"refuse_chunks", Into(&uploads.refuse_chunks)},
                                {"min_chunk", Into(&uploads.min_chunk)},
                                {"idle_limit_ms", Into(&uploads.idle_limit)},
                                {"commit_delay_ms", Into(&uploads.commit_delay)},
                                {"checks_children", Into(&uploads.checks_children)},
                                {"allows_cancel", Into(&uploads.allows_cancel)}}));
  for (const std::string& name : personalities) RETURN_IF_ERROR(ApplyPersonality(name, &uploads, &unused));
  return uploads;
}

Setters MatcherSetters(RequestMatcher* matcher) {
  return {{"method", Into(&matcher->method)},
          {"path_contains", Into(&matcher->path_contains)},
          {"path_regex", Into(&matcher->path_regex)},
          {"range_contains", Into(&matcher->range_contains)},
          {"skip", Into(&matcher->skip)},
          {"count", Into(&matcher->count)}};
}

Setters ActionSetters(FaultAction* action) {
  const auto headers = [action](const json& value) {
    for (const auto& [name, text] : value.items())
      action->headers.emplace_back(name, text.get<std::string>());
  };
  return {{"delay_ms", Into(&action->delay)},
          {"drop", Into(&action->drop)},
          {"request_bytes_per_second", Into(&action->request_bytes_per_second)},
          {"request_gate_at", Into(&action->request_gate_at)},
          {"cut_request_at", Into(&action->cut_request_at)},
          {"status", Into(&action->status)},
          {"body", Into(&action->body)},
          {"headers", headers},
          {"huge_header_bytes", Into(&action->huge_header_bytes)},
          {"ignore_range", Into(&action->ignore_range)},
          {"shift_range", Into(&action->shift_range)},
          {"content_range", Into(&action->content_range)},
          {"no_content_length", Into(&action->no_content_length)},
          {"chunked", Into(&action->chunked)},
          {"claim_gzip", Into(&action->claim_gzip)},
          {"close_after", Into(&action->close_after)},
          {"bytes_per_second", Into(&action->bytes_per_second)},
          {"body_gate_at", Into(&action->body_gate_at)},
          {"reset_at", Into(&action->reset_at)},
          {"truncate_at", Into(&action->truncate_at)},
          {"cut_range_to", Into(&action->cut_range_to)},
          {"flip_bit_of_byte", Into(&action->flip_bit_of_byte)}};
}

}  // namespace

bool Control::IsFor(const HttpRequest& request) { return absl::StartsWith(request.path, kPrefix); }

std::shared_ptr<Gate> Control::GateNamed(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  std::shared_ptr<Gate>& gate = gates_[name];
  if (gate == nullptr) gate = std::make_shared<Gate>();
  return gate;
}

void Control::OpenGates() {
  absl::MutexLock lock(&mutex_);
  for (const auto& [name, gate] : gates_) gate->Open();
}

absl::Status Control::AddFaults(absl::string_view text) {
  ASSIGN_OR_RETURN(json rules, base::ParseJson(text, kMaxText));
  if (!rules.is_array()) rules = json::array({rules});
  std::vector<std::pair<RequestMatcher, FaultAction>> parsed;
  for (const json& rule : rules) {
    RequestMatcher matcher;
    FaultAction action;
    Setters setters = MatcherSetters(&matcher);
    setters.merge(ActionSetters(&action));
    setters["gate"] = [&](const json& name) { action.gate = GateNamed(name.get<std::string>()); };
    setters["request_gate"] = [&](const json& name) {
      action.request_gate = GateNamed(name.get<std::string>());
    };
    setters["body_gate"] = [&](const json& name) { action.body_gate = GateNamed(name.get<std::string>()); };
    RETURN_IF_ERROR(Fill(rule, setters));
    parsed.emplace_back(std::move(matcher), std::move(action));
  }
  for (auto& [matcher, action] : parsed) registry_->AddFault(matcher, std::move(action));
  return absl::OkStatus();
}

absl::StatusOr<std::string> Control::Post(const HttpRequest& request, absl::string_view what) {
  if (what == "faults") {
    RETURN_IF_ERROR(AddFaults(request.body));
  } else if (what == "revoke_tokens") {
    registry_->RevokeTokens();
  } else if (what == "expire_urls") {
    registry_->ExpireCdnUrls();
  } else if (what == "break_connections") {
    registry_->BreakConnections();
  } else if (absl::ConsumePrefix(&what, "gates/")) {
    const bool open = absl::ConsumeSuffix(&what, "/open");
    if (!open && !absl::ConsumeSuffix(&what, "/close")) return absl::NotFoundError("open or close");
    const std::shared_ptr<Gate> gate = GateNamed(std::string(what));
    open ? gate->Open() : gate->Close();
  } else if (what == "auth") {
    ASSIGN_OR_RETURN(const json object, base::ParseJson(request.body, kMaxText));
    ASSIGN_OR_RETURN(AuthOptions auth, AuthFrom(object));
    registry_->SetAuth(std::move(auth));
  } else if (what == "uploads") {
    ASSIGN_OR_RETURN(const json object, base::ParseJson(request.body, kMaxText));
    ASSIGN_OR_RETURN(UploadOptions uploads, UploadsFrom(object));
    registry_->SetUploads(std::move(uploads));
  } else if (what == "drop_uploads") {
    registry_->DropUploadSessions();
  } else if (what == "cdn") {
    ASSIGN_OR_RETURN(const json object, base::ParseJson(request.body, kMaxText));
    CdnOptions cdn;
    RETURN_IF_ERROR(Fill(object, {{"enabled", Into(&cdn.enabled)},
                                  {"ttl_ms", Into(&cdn.ttl)},
                                  {"status", Into(&cdn.status)},
                                  {"refuse_authorization", Into(&cdn.refuse_authorization)}}));
    registry_->SetCdn(cdn);
  } else if (what == "referrers") {
    ASSIGN_OR_RETURN(const json object, base::ParseJson(request.body, kMaxText));
    bool enabled = true;
    RETURN_IF_ERROR(Fill(object, {{"enabled", Into(&enabled)}}));
    registry_->SetReferrersApi(enabled);
  } else {
    return absl::NotFoundError("no such control");
  }
  return std::string("{}\n");
}

absl::StatusOr<std::string> Control::Do(const HttpRequest& request) {
  absl::string_view what = request.path;
  absl::ConsumePrefix(&what, kPrefix);
  if (request.method == "POST") return Post(request, what);
  if (request.method == "DELETE" && what == "faults") {
    registry_->ClearFaults();
    return std::string("{}\n");
  }
  if (request.method == "DELETE" && what == "log") {
    registry_->ClearLog();
    return std::string("{}\n");
  }
  if (request.method != "GET") return absl::NotFoundError("no such control");
  if (what == "log") {
    json lines = json::array();
    for (const LoggedRequest& logged : registry_->Log()) lines.push_back(LogLine(logged));
    return lines.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
  }
  if (what == "stats") {
    const json stats = {{"connections", registry_->connections()},
                        {"token_requests", registry_->token_requests()},
                        {"requests", registry_->Log().size()},
                        {"body_bytes", registry_->BodyBytes({})},
                        {"received_bytes", registry_->ReceivedBytes({})},
                        {"upload_sessions", registry_->upload_sessions()}};
    return stats.dump() + "\n";
  }
  if (absl::ConsumePrefix(&what, "gates/")) {
    const std::shared_ptr<Gate> gate = GateNamed(std::string(what));
    return json({{"waiting", gate->waiting()}, {"arrived", gate->arrived()}}).dump() + "\n";
  }
  return absl::NotFoundError("no such control");
}

Answer Control::Handle(const HttpRequest& request) {
  absl::StatusOr<std::string> done = Do(request);
  if (done.ok()) return TextAnswer(200, *std::move(done));
  const json error = {{"error", done.status().ToString()}};
  return TextAnswer(absl::IsNotFound(done.status()) ? 404 : 400, error.dump() + "\n");
}

}  // namespace lazyblob::support::internal
