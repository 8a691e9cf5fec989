// Lists the endpoints of openapi.json.
const { paths, components } = await (await fetch("/openapi.json")).json();

function element(name, text, ...children) {
  const made = document.createElement(name);
  made.textContent = text;
  made.append(...children);
  return made;
}

function type(schema) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.anyOf) return schema.anyOf.map(type).join(" or ");
  if (schema.type === "array") return `list of ${type(schema.items)}`;
  if (schema.type === "object") {
    const values = schema.additionalProperties;
    return values ? `object of ${type(values)}` : Object.keys(schema.properties).join(", ");
  }
  return schema.format ?? schema.type ?? "any";
}

function terms(pairs) {
  const list = element("dl", "");
  for (const [term, text] of pairs) list.append(element("dt", term), element("dd", text));
  return list;
}

function endpoint(method, path, { description, parameters = [], requestBody, responses }) {
  const section = element("section", "", element("h2", `${method.toUpperCase()} ${path}`));
  section.append(element("p", description));
  const body = requestBody?.content["multipart/form-data"].schema.properties ?? {};
  const sent = Object.entries(body).map(([name, schema]) => [`form field ${name}`, type(schema)]);
  const query = parameters.map(({ name, schema }) => [`query ${name}`, type(schema)]);
  const answers = Object.entries(responses).map(([code, { description: text, content }]) => {
    const schema = content?.["application/json"]?.schema;
    return [code, schema && code < 300 ? type(schema) : text];
  });
  section.append(terms([...sent, ...query, ...answers]));
  return section;
}

for (const [path, methods] of Object.entries(paths)) {
  for (const [method, operation] of Object.entries(methods)) {
    document.getElementById("endpoints").append(endpoint(method, path, operation));
  }
}
for (const [name, { properties, description }] of Object.entries(components.schemas)) {
  if (name.includes("ValidationError")) continue;
  const fields = Object.entries(properties).map(([field, schema]) => {
    const text = [type(schema), schema.description].filter(Boolean).join(": ");
    return [field, text];
  });
  const section = element("section", "", element("h2", name), element("p", description ?? ""));
  section.append(terms(fields));
  document.getElementById("endpoints").append(section);
}
